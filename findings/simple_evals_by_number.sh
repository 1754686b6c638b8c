#!/usr/bin/env bash
# Library:   nvidia-simple-evals 26.3, with datasets 5.2.0, aiohttp 3.14.5 and openai 3.57.0
# Behaviour: Verdicts are kept under the number of the item and nothing else, by default in the folder "cache" where one
#            works. Another model, temperature or benchmark is then not asked and has the first one's verdicts; a line
#            says that a cache was found. With several runs of each item, verdicts are lined up as they arrive, and the
#            standard error takes each block of them for a run: it depends on which answer came first.
# Output:    right: score 1.0, 2 questions asked
#            wrong, in the same folder: score 1.0, 0 questions asked
#            two runs of one right and one wrong item, arriving as 1 0 1 0: standard error 0.5
#            the same answers, arriving as 1 0 0 1: standard error 0.0
# Matters:   Who compares checkpoints with it compares the first with itself, and its intervals are too narrow by a
#            factor that nobody knows. Here an answer belongs to its item's name, question, model and settings
#            (megatron_apriel/evaluate/running.py), and intervals are taken over items (statistics.py).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet aiohttp==3.14.5 blobfile==3.3.0 datasets==5.2.0 jinja2==3.1.6 \
    openai==3.57.0 sympy==1.14.0 tenacity==9.0.0
"$folder/environment/bin/pip" install --quiet --no-deps nvidia-simple-evals==26.3 2>"$folder/pip.log" || {
    cat "$folder/pip.log" >&2
    exit 1
}

cd "$folder"
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

data = Path("HuggingFaceH4/MATH-500/test.jsonl")  # found before the benchmark of this name
data.parent.mkdir(parents=True)
items = [{"problem": "Two and two?", "answer": "4"}, {"problem": "Three and four?", "answer": "7"}]
data.write_text("".join(json.dumps(item) + "\n" for item in items))

asked, order, turn = 0, "", threading.Condition()


class Handler(BaseHTTPRequestHandler):
    """Models ``right`` and ``wrong``, and ``mixed``, which knows the first item; replies leave in a given order."""

    def do_POST(self) -> None:
        global asked, order
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_first = "Two" in question["messages"][-1]["content"]
        is_right = {"right": True, "wrong": False, "mixed": is_first}[question["model"]]
        text = f"\\boxed{{{(4 if is_first else 7) if is_right else 0}}}"
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        with turn:
            asked += 1
            turn.wait_for(lambda: not order or order[0] == str(int(is_right)))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
            self.wfile.flush()
            time.sleep(0.5 if order else 0)  # the next one leaves when this one has been scored
            order = order[1:]
            turn.notify_all()

    def log_message(self, *words: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()


def evaluated(model: str, *options: str) -> dict[str, float]:
    """What the program says of a model."""
    command = [str(Path(sys.executable).with_name("simple_evals")), "--eval_name", "math_test_500_nemo"]
    command += ["--model", model, "--out_dir", "out", "--url", f"http://127.0.0.1:{server.server_port}/", *options]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "home"}
    subprocess.run(command, check=True, capture_output=True, env=offline)
    return json.loads(Path("out/math_test_500_nemo.json").read_text())


seen = []
for model, words in (("right", "right"), ("wrong", "wrong, in the same folder")):
    asked = 0
    seen.append((evaluated(model)["score"], asked))
    print(f"{words}: score {seen[-1][0]}, {seen[-1][1]} questions asked")
for order, words in (("1010", "two runs of one right and one wrong item"), ("1001", "the same answers")):
    arriving = " ".join(order)
    error = evaluated("mixed", "--num_repeats", "2", "--cache_dir", order)["score:stderr"]
    seen.append(round(error, 6))
    print(f"{words}, arriving as {arriving}: standard error {error:.1f}")
sys.exit(seen != [(1.0, 2), (1.0, 0), 0.5, 0.0])
PYTHON
