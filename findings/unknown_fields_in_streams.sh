#!/usr/bin/env bash
# Library:   openai 7.59.0 for Node, beside openai 3.57.0 for Python
# Behaviour: The stream helper of OpenAI's client for Node keeps only the last piece of a field that the protocol does
#            not have, where it joins the pieces of those that it knows. The one for Python joins both.
# Output:    Node, stream helper:   content "It is 4." reasoning "them."
#            Node, pieces joined:   content "It is 4." reasoning "I add them."
#            Python, stream helper: content "It is 4." reasoning "I add them."
# Matters:   Servers send the reasoning in such a field. Who asks vLLM through the helper for Node gets its last word:
#            docs/serving.md says to join the pieces of the stream instead.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet openai==3.57.0
cd "$folder"
for_node=openai==7.59.0
npm install --silent --no-audit --no-fund "${for_node/==/@}" >npm.log 2>&1 || { cat npm.log >&2; exit 1; }

environment/bin/python - <<'PYTHON' &
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PIECES = [{"role": "assistant", "reasoning": "I add "}, {"reasoning": "them."}, {"content": "It is "}, {"content": "4."}]


class Handler(BaseHTTPRequestHandler):
    """Streams one answer to whoever asks."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number, delta in enumerate([*PIECES, {}]):
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == len(PIECES) else None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *words: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
Path("port.partial").write_text(str(server.server_port))
Path("port.partial").rename("port")
server.serve_forever()
PYTHON
server=$!
for _ in $(seq 100); do [ -f port ] && break; sleep 0.1; done
PORT=$(cat port)
export PORT

cat >ask.mjs <<'NODE'
import OpenAI from "openai";
const client = new OpenAI({ baseURL: `http://127.0.0.1:${process.env.PORT}/v1`, apiKey: "none" });
const question = { model: "m", messages: [{ role: "user", content: "Two and two?" }] };
const show = (name, said) =>
  console.log(`${name} content ${JSON.stringify(said.content)} reasoning ${JSON.stringify(said.reasoning)}`);
const final = await client.chat.completions.stream(question).finalChatCompletion();
show("Node, stream helper:  ", final.choices[0].message);
const joined = { content: "", reasoning: "" };
for await (const chunk of await client.chat.completions.create({ ...question, stream: true }))
  for (const field of Object.keys(joined)) joined[field] += chunk.choices[0].delta[field] ?? "";
show("Node, pieces joined:  ", joined);
NODE
cat >ask.py <<'PYTHON'
import json
import os

import openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{os.environ['PORT']}/v1", api_key="none")
with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "Two and two?"}]) as stream:
    said = stream.get_final_completion().choices[0].message
print("Python, stream helper:", "content", json.dumps(said.content), "reasoning", json.dumps(said.reasoning))
PYTHON
{ node ask.mjs; environment/bin/python ask.py; } | tee found
diff found - <<'EXPECTED' >/dev/null || { echo "the behaviour has changed" >&2; exit 1; }
Node, stream helper:   content "It is 4." reasoning "them."
Node, pieces joined:   content "It is 4." reasoning "I add them."
Python, stream helper: content "It is 4." reasoning "I add them."
EXPECTED
