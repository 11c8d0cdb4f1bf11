"""What every script shares. Of bert, only errors and files are imported here."""
