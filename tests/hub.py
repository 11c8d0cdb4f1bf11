"""A model hub on this machine, and processes that open one of its models."""

import http.server
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: files under /{owner}/{model}/resolve/main/."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self):
        name = self.path.rpartition("/")[2]
        path = self.folder / name
        found = self.path.startswith("/someone/small-bert/resolve/main/") and path.is_file()
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        if found:
            self.send_header("ETag", f'"{name}"')
            self.send_header("Content-Length", str(path.stat().st_size))
        else:
            known = "someone/small-bert" in self.path
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        return path if found else None

    def do_GET(self):
        path = self.do_HEAD()
        if path:
            self.wfile.write(path.read_bytes())

    def log_message(self, *arguments):
        pass


@contextmanager
def hub_of(folder):
    """Serve the files of `folder` as the model someone/small-bert; yields the hub's address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def load_by_name(name, **environment):
    """Bert and Tokenizer of a hub's model, in a process of their own → the finished process."""
    code = ("import sys; from bert import *\n"
            "try: print(Bert.from_pretrained(sys.argv[1]).config.hidden_size,"
            " Tokenizer.from_pretrained(sys.argv[1]).vocab_size)\n"
            "except UserError as error: sys.exit(str(error))")
    return subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True,
                          env=os.environ | {"HF_HUB_DISABLE_XET": "1", **environment},
                          cwd=ROOT)
