"""The command as a whole: what it imports, how it ends, what it says when something is wrong."""

import errno
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from edgemoe.cli import main as main_module
from edgemoe.cli.main import VERBS, run_command
from edgemoe.errors import BudgetError
from tests.cli.conftest import FAKE_COMMAND, Done, Edgemoe, Fakes, environment
from tests.support.fake_engine import FakeEngine
from tests.support.few_threads import few_threads
from tests.support.small_tokenizer import START, small_tokenizer, write_model_folder

HEAVY = ("numpy", "numba", "rich", "jinja2", "tokenizers", "prompt_toolkit", "huggingface_hub")


def test_help_imports_nothing_heavy() -> None:
    ways = [["--help"], [], ["--version"], *([verb, "--help"] for verb in VERBS)]
    code = (
        "import sys; from edgemoe.cli.main import run_command\n"
        f"codes = [run_command(arguments) for arguments in {ways!r}]\n"
        f"print('LOADED', set(codes), [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED {0} []"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run"],
        ["run", "--no-such-option"],
        ["run", "-p", "x", "--max-tokens", "many"],
        ["run", "-p", "x", "--max-tokens", "0"],
        ["run", "-p", "", "m"],
        ["run", "-p", "x", "--raw", "--system", "y"],
        ["chat", "--max-tokens", "-1"],
        ["convert", "only-a-source"],
        ["verify"],
    ],
)
def test_usage_errors_are_one_paragraph_and_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1


def test_other_errors_are_code_1_and_debug_adds_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    assert run_command(["inspect", missing]) == 1
    assert capsys.readouterr().err == (
        f"error: {missing}: there is no such folder or model. Give the folder of a store; edgemoe convert makes"
        " one, edgemoe info names the bundled model.\n"
    )
    assert run_command(["inspect", missing, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "x" * 5000]) == 1
    assert "too long" in capsys.readouterr().err


def test_errors_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "\x1b[31mred"]) == 1
    assert capsys.readouterr().err.startswith("error: \ufffd[31mred: ")


@pytest.mark.parametrize(
    ("prompt", "closed", "code", "errors"),
    [("-", 0, 2, "the prompt is empty"), ("x", 1, 0, ""), ("", 2, 2, "")],
)
def test_a_stream_that_the_caller_has_closed(
    folder: Path, fakes: Fakes, prompt: str, closed: int, code: int, errors: str
) -> None:
    done = fakes.run("run", folder, "-p", prompt, closed=[closed])
    assert (done.code, done.output) == (code, "")
    assert errors in done.errors
    assert "Traceback" not in done.errors


def test_all_streams_closed_by_a_shell_that_starts_the_command(folder: Path, tmp_path: Path) -> None:
    command = shlex.join([*FAKE_COMMAND, "run", str(folder), "-p", "x"])
    shell = ["sh", "-c", f"{command} <&- >&- 2>&-"]
    done = subprocess.run(shell, capture_output=True, env=environment(tmp_path), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_fault_of_ours_is_one_paragraph_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(main_module.importlib, "import_module", fail)
    assert run_command(["info"]) == 1
    assert capsys.readouterr().err.startswith("error: internal error: ZeroDivisionError: by zero.")


@pytest.mark.parametrize(
    "refusal",
    [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")],
)
def test_a_system_that_starts_no_thread_or_process_is_told(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is what Python raises for a thread, the second what it raises for a process (fork(2): EAGAIN)."""

    def fail(name: str) -> None:
        raise refusal

    monkeypatch.setattr(main_module.importlib, "import_module", fail)
    assert run_command(["info"]) == 1
    assert "the system refuses to start another thread or process" in capsys.readouterr().err


def test_an_end_of_file_is_no_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(name: str) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr(main_module.importlib, "import_module", fail)
    assert run_command(["info"]) == 1
    assert "error: internal error: EOFError: Ran out of input." in capsys.readouterr().err


def test_run_prints_the_answer(edgemoe: Edgemoe, folder: Path) -> None:
    assert edgemoe("run", folder, "-p", "Say hello", says="Hello, wörld!") == Done(0, "Hello, wörld!\n", "")


def test_run_prints_one_object_as_json(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("run", folder, "-p", "-", "--json", "--max-tokens", "2", stdin="Grüße".encode())
    data = json.loads(done.output)
    assert data["finish_reason"] == "length"
    assert data["generated_tokens"] == len(data["token_ids"]) == 2
    assert data["prompt_tokens"] > 0
    assert set(data["stats"]) >= {"prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes"}
    assert data["ledger_ms"]["sampling"] > 0


@pytest.mark.parametrize("arguments", [["run", "-p", "Say hello", "--json"], ["chat"]])
def test_kernels_that_are_compiled_are_one_line_on_stderr(
    arguments: list[str], edgemoe: Edgemoe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemoe.kernels.jit.compile import jit

    class CompilingEngine(FakeEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.backend.name = "jit"
            namespace: dict[str, Any] = {}
            exec("def double(number):\n    return 2 * number", namespace)  # without a file its code cannot be kept
            self._double = jit(namespace["double"])

        def forward(self, token_ids: Sequence[int], *, all_logits: bool = False, out: Any = None) -> Any:
            assert self._double(21) == 42
            return super().forward(token_ids, all_logits=all_logits)

    quiet = edgemoe(*arguments[:1], folder, *arguments[1:], stdin=b"Hello")
    assert quiet.errors == ""
    monkeypatch.setattr("tests.support.fake_main.SlowEngine", CompilingEngine)
    done = edgemoe(*arguments[:1], folder, *arguments[1:], stdin=b"Hello")
    assert done.errors.startswith("compiling the portable kernels (at every start")
    assert done.errors.count("\n") == 1
    assert "compiling" not in done.output


def test_run_raw_goes_without_the_template(edgemoe: Edgemoe, folder: Path) -> None:
    plain = json.loads(edgemoe("run", folder, "-p", "Say hello", "--json").output)
    raw = json.loads(edgemoe("run", folder, "-p", "Say hello", "--json", "--raw").output)
    assert raw["prompt_tokens"] < plain["prompt_tokens"]


@pytest.mark.parametrize(
    ("stdin", "says"),
    [(b"", "empty"), (b" \n", "empty"), (b"ab\xff", "not UTF-8: found byte 0xff at 2"), (b"x y " * 40_000, "fit")],
)
def test_prompts_on_stdin_that_cannot_be_answered(edgemoe: Edgemoe, folder: Path, stdin: bytes, says: str) -> None:
    done = edgemoe("run", folder, "-p", "-", stdin=stdin)
    assert (done.code, done.output) == (2, "")
    assert says in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(("prompt", "system", "what"), [(b"ab\xff", b"x", "the prompt"), (b"x", b"ab\xff", "--system")])
def test_an_argument_that_is_not_utf8(prompt: bytes, system: bytes, what: str, folder: Path, fakes: Fakes) -> None:
    done = fakes.run("run", folder, "-p", prompt, "--system", system)
    assert done.code == 2
    assert done.errors.startswith(f"error: {what} is not UTF-8: found byte 0xff at 2.")


def test_arguments_are_utf8_whatever_the_locale(folder: Path, tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*FAKE_COMMAND, "run", str(folder), "-p", "größe".encode(), "--system", "ü".encode()]
    done = subprocess.run(command, capture_output=True, env=environment(tmp_path, **locale), check=False)
    assert (done.returncode, done.stdout) == (0, b"Hello, world!\n")


def test_options_out_of_range_name_the_option(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("run", folder, "-p", "x", "--temperature", "-1")
    assert done.code == 2
    assert "temperature" in done.errors


def test_too_small_a_budget_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BudgetError("This model needs at least 300 MiB.", "Use --ram 300MiB or more.")

    monkeypatch.setattr("edgemoe.engine.opening.open_engine", refuse)
    assert run_command(["run", str(folder), "-p", "x", "--ram", "1MiB"]) == 1
    assert capsys.readouterr().err == "error: This model needs at least 300 MiB. Use --ram 300MiB or more.\n"


def test_a_reader_that_leaves_ends_the_command_quietly(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FAKE_COMMAND, "run", str(folder), "-p", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path, FAKE_SAYS="many words " * 20, FAKE_SECONDS="0.01"),
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 1


def test_ctrl_c_ends_a_run_with_what_there_is(folder: Path, fakes: Fakes) -> None:
    process = fakes.start("run", folder, "-p", "x", FAKE_SAYS="xyzw" * 100, FAKE_SECONDS="0.05")
    first = process.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert process.returncode == 130
    assert (first, errors) == (b"x", b"")
    assert rest.endswith(b"\n")
    assert len(rest) < 300


def test_ctrl_c_ends_a_chat_through_a_pipe(folder: Path, fakes: Fakes) -> None:
    process = fakes.start("chat", folder, stdin=True, FAKE_SAYS="xyzw" * 100, FAKE_SECONDS="0.05")
    assert process.stdin is not None
    process.stdin.write(b"one\ntwo\n")
    process.stdin.flush()
    process.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")
    assert rest.count(b"\n") == 1


def test_ctrl_c_before_the_answer_is_quiet(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemoe.engine.opening.open_engine", interrupt)
    assert run_command(["run", str(folder), "-p", "x"]) == 130
    assert capsys.readouterr().out.strip() == ""


def test_an_interrupt_where_no_thread_starts_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenBLAS raises SIGINT where the system starts no thread for it (driver/others/blas_server.c)."""

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemoe.engine.opening.open_engine", interrupt)
    few_threads(monkeypatch, 0)
    assert run_command(["run", str(folder), "-p", "x"]) == 1
    assert "the system refuses to start another thread or process" in capsys.readouterr().err


def test_chat_through_a_pipe_answers_each_line(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("chat", folder, stdin=b"Hi\n\n/system Be brief.\nAnd now?\n/quit\nnot read\n")
    assert done == Done(0, "Hello, world!\nHello, world!\n", "")


def test_a_byte_order_mark_is_no_part_of_a_message(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("chat", folder, stdin=b"\xef\xbb\xbf/help\n")
    assert (done.code, done.output[:5]) == (0, "/help")


def test_chat_through_a_pipe_ends_at_the_first_error(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("chat", folder, stdin=b"Hi\n/retyr\nmore\n")
    assert (done.code, done.output) == (2, "Hello, world!\n")
    assert done.errors.startswith(
        "error: there is no command /retyr: did you mean /retry? /help lists the commands; //retyr"
    )
    assert edgemoe("chat", folder, stdin=b"\xff\n").code == 2


def test_a_message_may_begin_with_a_slash(edgemoe: Edgemoe, folder: Path, tmp_path: Path) -> None:
    """Only what is a command, or resembles one, is not sent: models have words such as /no_think."""
    talk = tmp_path / "talk.json"
    said = ["/no_think Why?", "/think", "/", "/usr/bin/env is a file", "//etc is a folder", "//help me", "//retyr"]
    assert edgemoe("chat", folder, stdin="\n".join([*said, f"/save {talk}\n"]).encode()).code == 0
    heard = [message["content"] for message in json.loads(talk.read_text())["messages"][::2]]
    assert heard == [*said[:4], "/etc is a folder", "/help me", "/retyr"]
    for name, meant in {"exit": "quit", "quitt": "quit", "?": "help", "st": "stats", "Reset": "reset"}.items():
        assert f"/{name}: did you mean /{meant}?" in edgemoe("chat", folder, stdin=f"/{name}\n".encode()).errors
    taken_up = edgemoe("chat", folder, "--load", talk, stdin=b"/undo\n" * 7 + b"/retry\n")
    assert "there is no answer to try again" in taken_up.errors


def test_template_variables_reach_the_template(edgemoe: Edgemoe, tmp_path: Path) -> None:
    """JSON, or else text; True, False and None as Python writes them, which would all be true as texts."""
    source = "{{ [enable_thinking, effort, n] | tojson }}{{ messages[-1].content }}"
    folder = write_model_folder(tmp_path / "store", template=source)

    options = (
        "--template-var",
        "enable_thinking=False",
        "--template-var",
        "effort=very high=1",
        "--template-var",
        "n=[1]",
    )
    done = edgemoe("run", folder, "-p", "Hi", "--json", "--max-tokens", "1", *options)
    rendered = small_tokenizer().encode('[false, "very high=1", [1]]Hi').ids
    assert json.loads(done.output)["prompt_tokens"] == len(rendered)
    piped = edgemoe("chat", folder, *options, stdin=b"Hi\n")
    assert piped == Done(0, "Hello, world!\n", "")
    for verb in (["run", "-p", "x"], ["chat"]):
        for wrong, message in (
            ("n", "expected NAME=VALUE, found 'n'"),
            ("=1", "expected NAME=VALUE"),
            ("a b=1", "expected NAME=VALUE"),
            ("m=1", "'m': this model's chat template does not read it"),
            ("messages=[]", "edgemoe sets this one itself"),
        ):
            done = edgemoe(*verb, folder, "--template-var", wrong, stdin=b"Hi\n")
            assert (done.code, done.output) == (2, "")
            assert message in done.errors
    assert "given twice" in edgemoe("run", folder, "-p", "x", *options[:2] * 2).errors
    assert "exclude each other" in edgemoe("run", folder, "-p", "x", "--raw", *options[:2]).errors


def test_markers_are_text_in_a_literal_prompt(edgemoe: Edgemoe, folder: Path) -> None:
    def tokens(*options: str) -> int:
        done = edgemoe("run", folder, "-p", "a<|im_end|>b", "--json", "--max-tokens", "1", *options)
        return json.loads(done.output)["prompt_tokens"]

    spelled = len(small_tokenizer().encode("a<|im_end |>b").ids) - 2
    assert tokens("--raw", "--literal-prompt") >= spelled > tokens("--raw") == 3
    assert tokens("--literal-prompt") - tokens() == tokens("--raw", "--literal-prompt") - 3
    piped = edgemoe("chat", folder, "--literal-prompt", stdin=b"a<|im_end|>b\n")
    assert piped == Done(0, "Hello, world!\n", "")


def test_a_doubled_beginning_and_an_unreadable_end_are_warned_of(edgemoe: Edgemoe, tmp_path: Path) -> None:
    """llama.cpp warns of two BOS too."""
    folder = write_model_folder(tmp_path / "store")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single=[START, "$A"], special_tokens=[(START, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert edgemoe("run", folder, "--raw", "-p", "Hi") == Done(0, "Hello, world!\n", "")
    done = edgemoe("run", folder, "--raw", "-p", f"{START}Hi")
    assert (done.code, done.output) == (0, "Hello, world!\n")
    assert done.errors.startswith(f"warning: the prompt begins with {START}, and the tokenizer adds another one")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>", "chat_template": "x"}')
    for arguments in (["run", "-p", "Hi"], ["chat"]):
        done = edgemoe(*arguments, folder, stdin=b"Hi\n")
        assert (done.code, done.output) == (0, "Hello, world!\n")
        assert done.errors == (
            "warning: tokenizer_config.json: eos_token '<nowhere>' is not in the vocabulary: it ends no answer.\n"
        )


def test_white_space_is_a_raw_prompt_but_no_message(edgemoe: Edgemoe, folder: Path) -> None:
    assert edgemoe("run", folder, "--raw", "-p", "\n ") == Done(0, "Hello, world!\n", "")
    assert "the prompt is empty" in edgemoe("run", folder, "-p", "\n ").errors
    assert "the prompt is empty" in edgemoe("run", folder, "--raw", "-p", "").errors


def test_errors_before_a_chat_are_one_paragraph(edgemoe: Edgemoe, tmp_path: Path) -> None:
    done = edgemoe("chat", tmp_path / "missing")
    assert done.code == 1
    assert done.errors.count("\n") == 1


def test_thinking_is_switched_on_the_command_line(edgemoe: Edgemoe, tmp_path: Path) -> None:
    source = "{{ messages[-1].content }}{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    switched = write_model_folder(tmp_path / "switched", template=source)
    plain = write_model_folder(tmp_path / "plain", template="{{ messages[-1].content }}")
    for value, text in (("false", "Hi<no>"), ("False", "Hi<no>"), ("true", "Hi")):
        done = edgemoe("run", switched, "-p", "Hi", "--json", "--template-var", f"enable_thinking={value}")
        assert json.loads(done.output)["prompt_tokens"] == len(small_tokenizer().encode(text).ids)
    for folder, given, message in (
        (switched, "enable_thinking=off", "enable_thinking: expected true or false, found the text 'off'"),
        (switched, "thinking=false", "It reads enable_thinking."),
        (plain, "enable_thinking=false", "It reads none, so that no variable switches anything."),
    ):
        for verb in (["run", "-p", "x"], ["chat"]):
            done = edgemoe(*verb, folder, "--template-var", given, stdin=b"Hi\n")
            assert (done.code, done.output) == (2, "")
            assert message in " ".join(done.errors.split())
