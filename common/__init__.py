"""What every script shares. Of bert, only errors, files, json_files and terminal are imported."""
