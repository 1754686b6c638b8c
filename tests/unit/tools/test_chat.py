"""tools/chat.py: answers in pipes with exit codes, and a conversation on a terminal that only its person ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from select import select

import pytest

from megatron_apriel.testing.chat_servers import Reply, ScriptedServer, streamed, whole
from megatron_apriel.testing.rigged_models import red_image

ROOT = Path(__file__).resolve().parents[3]
ANSWER = "I think.\n[BEGIN FINAL RESPONSE]\nSo it is.\n[END FINAL RESPONSE]\n<|end|>"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def said(text: str, **options: str) -> Reply:
    return streamed(*({"content": text[start : start + 3]} for start in range(0, len(text), 3)), **options)


def calling(*cities: str) -> Reply:
    calls = [{"name": "weather", "arguments": {"city": city}} for city in cities]
    return said(f"Ask.\n[BEGIN FINAL RESPONSE]\n<tool_calls>{json.dumps(calls)}</tool_calls>\n[END FINAL RESPONSE]")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "200"}


def chat(*words: object, asked: str | bytes = "", **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, without a terminal."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "chat.py", *map(str, words)],
        input=asked if isinstance(asked, bytes) else asked.encode(),
        env=environment() | variables,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "weather", "parameters": {}}]))
    return tmp_path / "tools.json"


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    red_image().save(tmp_path / "red one.png")
    return tmp_path / "red one.png"


def test_a_question_in_a_pipe_gives_the_answer_alone() -> None:
    with ScriptedServer(said(ANSWER)) as server:
        assert chat(server.address, asked="Why?\nNow.\n") == (0, "So it is.\n", "I think.\n")
        assert chat(server.address, "--hide-reasoning", asked="Why?") == (0, "So it is.\n", "")
        assert chat(server.address, "--prompt", "Why?", "--system", "Be brief.", "--greedy", "--max-tokens", "2K") == (
            0, "So it is.\n", "I think.\n"
        )  # fmt: skip
    first, _, last = server.requests
    assert first["messages"] == [{"role": "user", "content": "Why?\nNow."}]
    assert [message["content"] for message in last["messages"]] == ["Be brief.", "Why?"]
    assert (last["temperature"], last["max_tokens"]) == (0, 2000) and "temperature" not in first


def test_several_prompts_are_one_conversation_and_results_of_calls(tools_file: Path, image_file: Path) -> None:
    with ScriptedServer(said(ANSWER), calling("Oslo", "Rome"), said(ANSWER)) as server:
        words = ["--tools", tools_file, "--image", image_file, image_file, "--hide-reasoning"]
        for prompt in ("One?", "Two?", "rain", "sun"):
            words += ["--prompt", prompt]
        code, out, err = chat(server.address, *words)
    calls = 'weather({"city": "Oslo"})\nweather({"city": "Rome"})\n'
    assert (code, out, err) == (0, f"So it is.\n{calls}So it is.\n", "")
    last = server.requests[-1]
    assert last["tools"] == TOOLS
    assert [message["role"] for message in last["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "tool",
    ]
    assert [message["content"] for message in last["messages"][1:]] == ["So it is.", "Two?", "", "rain", "sun"]
    assert [part["type"] for part in last["messages"][0]["content"]] == ["image_url", "image_url", "text"]


def test_calls_whose_results_nobody_gives_end_it(tools_file: Path) -> None:
    with ScriptedServer(calling("Oslo")) as server:
        assert chat(server.address, "--tools", tools_file, "--hide-reasoning", asked="Rain?") == (
            0, 'weather({"city": "Oslo"})\n', ""
        )  # fmt: skip
        assert len(server.requests) == 1


def test_an_answer_without_a_final_response_is_a_failure() -> None:
    with ScriptedServer(said("I think and", finish="length")) as server:
        code, out, err = chat(server.address, "--prompt", "Why?", "--max-tokens", 4)
    assert (code, out) == (1, "")
    assert err.startswith("I think and\nnote: the answer was cut off at --max-tokens 4\n")
    assert err.endswith("the model gave no final response\n")


def test_another_format_is_content_all_the_same() -> None:
    with ScriptedServer(said("Plain words.")) as server:
        code, out, _ = chat(server.address, "--prompt", "Why?")
    assert (code, out) == (0, "Plain words.\n")


def test_what_a_model_writes_does_not_steer_the_terminal() -> None:
    with ScriptedServer(said("\x1b[2J\x07[BEGIN FINAL RESPONSE]a\x1b]0;x\x07\tb\n\u202ec")) as server:
        code, out, err = chat(server.address, "--prompt", "Why?")
    assert (code, out, err) == (0, "a\\x1b]0;x\\x07\tb\n\\u202ec\n", "\\x1b[2J\\x07\n")


FAILURES = {
    "no model": (["none"], "x", 1, "CheckpointError: none does not exist."),
    "no server": (["http://127.0.0.1:9"], "x", 1, "ServerError: http://127.0.0.1:9/v1 cannot be reached"),
    "no scheme": (["localhost:8000", "--prompt", "x"], "", 1, "ConfigError: localhost:8000 is no server's address"),
    "no image": (["none", "--image", "none.png", "--prompt", "x"], "", 1, "DataError: none.png cannot be read"),
    "no tools": (["none", "--tools", "none.json", "--prompt", "x"], "", 1, "ConfigError: none.json cannot be read"),
    "nothing asked": (["none"], " \n", 1, "DataError: standard input has no text."),
    "no text": (["none"], b"\xff\xfe", 1, "DataError: standard input is not text in UTF-8"),
    "two ways to choose": (["none", "--greedy", "--seed", "3"], "x", 1, "ConfigError: --greedy does not sample"),
    "no temperature": (["none", "--temperature", "0"], "x", 1, "ConfigError: --temperature 0.0 is not between"),
    "no number": (["none", "--max-tokens", "0"], "x", 2, "argument --max-tokens: 0 is not above 0"),
    "no key": (["http://x", "--key-variable", "NONE"], "x", 1, "ConfigError: the environment variable NONE holds no"),
    "a name for a directory": ([".", "--served-name", "x"], "x", 1, "ConfigError: . is a directory"),
    "a device for a server": (["http://x", "--device", "cpu"], "x", 1, "ConfigError: a device has no meaning"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_done_is_said_with_an_exit_code(name: str) -> None:
    words, asked, expected, message = FAILURES[name]
    code, out, err = chat(*words, asked=asked)
    assert (code, out) == (expected, "") and message in err and "Traceback" not in err


def test_a_server_that_refuses_is_quoted_and_the_key_is_not() -> None:
    with ScriptedServer(whole({"error": {"message": "bad key sesame-1234"}}, 401)) as server:
        code, _, err = chat(
            server.address, "--prompt", "x", "--key-variable", "DOOR", "--served-name", "m", DOOR="sesame-1234"
        )
    assert code == 1 and "401 Unauthorized: bad key ${DOOR}" in err and "sesame" not in err
    assert server.headers[0]["Authorization"] == "Bearer sesame-1234" and server.requests[0]["model"] == "m"


TOOL_FILES = {
    "[]": "lists no tools", "{": "is not valid JSON", "3": "lists no tools", "[3]": "describes no tool",
    '[{"function": {}}]': "describes no tool", '{"tools": 3}': "lists no tools",
    '[{"name": "f"}, {"type": "function", "function": {"name": "f"}}]': "has two tools of the name f",
}  # fmt: skip


@pytest.mark.parametrize("text", TOOL_FILES)
def test_files_that_describe_no_tools(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    code, _, err = chat("none", "--tools", tmp_path / "t.json", asked="x")
    assert code == 1 and TOOL_FILES[text] in err and "ConfigError" in err


@pytest.mark.parametrize("form", ['{"tools": [%s]}', "%s", "[%s]"])
def test_files_that_describe_a_tool(form: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(form % '{"name": "weather", "parameters": {}}')
    with ScriptedServer(said(ANSWER)) as server:
        assert chat(server.address, "--tools", tmp_path / "t.json", asked="x")[0] == 0
    assert server.requests[0]["tools"] == TOOLS


def test_help_is_there_at_once_and_teaches() -> None:
    code = "import runpy, sys; sys.argv = ['chat.py', '--help']; runpy.run_path('tools/chat.py', run_name='__main__')"
    script = f"import sys, atexit; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules))); {code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"False")
    for words in ("examples:", "http://localhost:8000", "/image FILE", "Ctrl-C stops an answer", "The exit code is 0"):
        assert words in done.stdout.decode()


def _reached_by_ctrl_c() -> None:
    """The terminal is the process's own, and SIGINT is not ignored, as it is below a shell's background job."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat that a person types into."""

    def __init__(self, *words: object) -> None:
        self.own, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "chat.py", *map(str, words)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(),
            start_new_session=True,
            preexec_fn=_reached_by_ctrl_c,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())

    def expect(self, words: str, seconds: float = 300.0) -> str:
        """What was printed until these words, which come within so many seconds."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready = select([self.own], [], [], max(0.0, end - time.monotonic()))[0]
            data = b""
            with contextlib.suppress(OSError):  # the other side is closed
                data = os.read(self.own, 65536) if ready else b""
            assert data, f"{words!r} does not come; there is {self.seen!r}"
            self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def interrupt(self, words: str) -> None:
        """Press Ctrl-C until these words come, no faster than a person.

        Python's readline loses a signal between its prompt and the moment in which it begins to wait.
        """
        for _ in range(5):
            time.sleep(0.3)
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.expect(words, 20.0)
                return
        raise AssertionError(f"{words!r} does not come; there is {self.seen!r}")

    def close(self) -> int:
        """The exit code."""
        return self.process.wait(300)


@contextlib.contextmanager
def terminal(*words: object) -> Iterator[Terminal]:
    opened = Terminal(*words)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.own)


def test_a_conversation_on_a_terminal(tools_file: Path, image_file: Path) -> None:
    replies = (said(ANSWER), said(ANSWER), calling("Oslo"), said(ANSWER), said(ANSWER))
    with ScriptedServer(*replies) as server, terminal(server.address, "--tools", tools_file) as person:
        person.expect("scripted: type a message. /help lists commands, Ctrl-D ends.\n")
        person.expect("> ")
        person.type("/help\n")
        person.expect("/image FILE")
        person.type("/wizard\n")
        person.expect("there is no command /wizard")
        person.type("/image nothing.png\n")
        person.expect("DataError: nothing.png cannot be read")
        person.type(f"/image '{image_file}'\n")
        person.expect("48 x 32 pixels, shown with the next message")
        person.type("What\\\nis it?\n")
        shown = person.expect("So it is.\n")
        assert "\x1b[2m" in shown and "I t" in shown and "\x1b[2mSo" not in shown
        person.type("/reasoning\n//etc?\n")
        assert "hin" not in person.expect("So it is.\n")
        person.type("Rain?\n")
        person.expect('the model calls weather({"city": "Oslo"})\n')
        person.expect("result of weather> ")
        person.type("yes\n")
        person.expect("So it is.\n")
        person.type("/new\nAgain?\n")
        person.expect("So it is.\n")
        person.expect("> ")
        person.type("\x04")
        assert person.close() == 0
    first, second, third, fourth, last = (request["messages"] for request in server.requests)
    assert [part.get("text", part["type"]) for part in first[0]["content"]] == ["image_url", "What\nis it?"]
    assert second[-1]["content"] == "/etc?" and len(second) == 3
    assert [message["role"] for message in fourth[len(third) :]] == ["assistant", "tool"]
    assert fourth[-1]["content"] == "yes"
    assert [message["content"] for message in last] == ["Again?"]


def test_ctrl_c_stops_an_answer_and_not_the_chat() -> None:
    slow = said("Hm.\n[BEGIN FINAL RESPONSE]\nOnce upon a time ")
    replies = (Reply([*slow.blocks[:-2], 600.0]), said(ANSWER), Reply([600.0]), said(ANSWER))
    with ScriptedServer(*replies) as server, terminal(server.address) as person:
        person.expect("> ")
        person.interrupt("Ctrl-D or /quit ends the chat.")
        person.type("Tell me a tale.\n")
        person.expect("time")
        person.interrupt("(stopped)")
        person.type("Go on.\n")
        person.expect("So it is.")
        person.type("And then?\n")
        while len(server.requests) < 3:
            time.sleep(0.05)
        person.interrupt("The message was not kept.")
        person.type("What?\n")
        person.expect("So it is.")
        person.type("/quit\n")
        assert person.close() == 0
    assert [message["content"] for message in server.requests[1]["messages"]] == [
        "Tell me a tale.", "Once upon a time", "Go on."
    ]  # fmt: skip
    assert [message["content"] for message in server.requests[3]["messages"]][3:] == ["So it is.", "What?"]


def test_an_error_of_the_server_does_not_end_the_chat(image_file: Path) -> None:
    replies = (whole({"error": {"message": "too many images"}}, 400), said(ANSWER))
    with ScriptedServer(*replies) as server, terminal(server.address, "--image", image_file) as person:
        person.expect("> ")
        person.type("What is it?\n")
        person.expect("400 Bad Request: too many images")
        person.expect("The message was not kept, its images wait for the next one.")
        person.type("And now?\n")
        person.expect("So it is.")
        person.type("/quit\n")
        assert person.close() == 0
    assert len(server.requests[1]["messages"]) == 1 and len(server.requests[1]["messages"][0]["content"]) == 2


def test_a_model_in_a_directory(rigged: Path, image_file: Path, tools_file: Path) -> None:
    words = [rigged, "--device", "cpu", "--greedy"]
    code, out, err = chat(*words, "--image", image_file, "--prompt", "What is it?")
    assert (code, out, err) == (0, "A red image.\n", "I look.\n")
    code, out, _ = chat(*words, "--tools", tools_file, "--prompt", "Weather?")
    assert (code, out) == (0, 'weather({"city": "Oslo"})\n')
    with terminal(*words) as person:
        person.expect(f"loading {rigged}")
        person.expect("type a message")
        person.type("Two and two?\n")
        person.expect("It is 4.")
        person.type("And one?\n")
        person.expect("Then 5.")
        person.expect("> ")
        person.type("\x04")
        assert person.close() == 0
