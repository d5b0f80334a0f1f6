import io
import json

import pytest
from rich.console import Console

from cluster.cli_chat import (
    Answer,
    ChatClient,
    ChatError,
    ChatOptions,
    ask_once,
    converse,
    refusal,
)


def quiet() -> Console:
    return Console(file=io.StringIO())


def ask(api, question: str = "Hello", options: ChatOptions | None = None) -> None:
    with ChatClient(api.url, api_key="sk-1") as client:
        ask_once(client, question, options=options or ChatOptions(), console=quiet())


def script_questions(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    remaining = iter(lines)

    def read(prompt: object = "") -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_the_answer_goes_to_standard_output_in_order(api, capsys) -> None:
    api.say("Hel", "lo", "!")
    ask(api)
    assert capsys.readouterr().out == "Hello!\n"


def test_only_what_was_given_is_sent(api) -> None:
    api.say("x")
    ask(api, "Why?", ChatOptions(system="Be brief.", temperature=0.0))
    assert api.bodies == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Why?"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
        }
    ]
    assert api.authorizations == ["Bearer sk-1"]


def test_control_characters_of_an_answer_do_not_reach_the_terminal(api, capsys) -> None:
    api.say("a\x1b[2J", "b\x07\tc\nd\x9b")
    ask(api)
    assert capsys.readouterr().out == "a[2Jb\tc\nd\n"


def test_an_empty_answer_is_an_error(api) -> None:
    api.say(finish_reason="length")
    with pytest.raises(ChatError, match=r"empty \(finish reason: length\)"):
        ask(api)


def test_an_error_in_the_middle_of_a_stream_is_shown(api) -> None:
    delta = {"choices": [{"index": 0, "delta": {"content": "half"}}]}
    api.answer_with(delta, {"error": {"message": "the replica died"}})
    with pytest.raises(ChatError, match="the replica died"):
        ask(api)


def test_a_stream_that_ends_without_done_is_an_error(api) -> None:
    api.answer_with({"choices": [{"index": 0, "delta": {"content": "half"}}]}, done=False)
    with pytest.raises(ChatError, match="broke off"):
        ask(api)


def test_a_refusal_names_the_status_and_the_reason(api) -> None:
    api.status = 401
    api.content = json.dumps({"error": {"message": "Unknown API key."}}).encode()
    with pytest.raises(ChatError, match=r"Unknown API key\..*SHOAL_API_KEY.*\[HTTP 401\]"):
        ask(api)


def test_nobody_listening_points_to_shoal_up() -> None:
    with (
        ChatClient("http://127.0.0.1:1", api_key=None) as client,
        pytest.raises(ChatError, match=r"nothing answers at .*; `shoal up`"),
    ):
        ask_once(client, "Hello", options=ChatOptions(), console=quiet())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"error": {"message": "m"}, "detail": [{"msg": "d"}]}, "m [HTTP 422]"),
        ({"errors": [{"detail": "d", "title": "t"}]}, "d [HTTP 422]"),
        ({"detail": [{"loc": ["body"], "msg": "too long", "type": "t"}]}, "too long [HTTP 422]"),
        ({"other": 1}, '{"other": 1} [HTTP 422]'),
        ([], "[] [HTTP 422]"),
    ],
)
def test_every_error_shape_becomes_one_line(content: object, expected: str) -> None:
    assert refusal(422, json.dumps(content).encode()) == expected


def test_an_error_page_that_is_not_json_is_quoted() -> None:
    assert refusal(502, b"Bad gateway\n") == "Bad gateway [HTTP 502]"
    assert refusal(502, b"") == "no explanation [HTTP 502]"


def test_the_figures_of_an_answer_count_the_tokens_after_the_first() -> None:
    answer = Answer(event for event in ())
    answer.num_tokens, answer.first_token_s, answer.total_s = 11, 0.5, 2.5
    answer.finish_reason = "length"
    assert answer.figures() == (
        "11 tokens, 5.0 tokens/s, first after 0.50 s, cut at the token limit"
    )


def test_a_conversation_carries_its_history_until_new(api, monkeypatch) -> None:
    api.say("fine")
    script_questions(monkeypatch, "How are you?", "", "And now?", "/new", "Who?", "/quit", "never")
    with ChatClient(api.url, api_key=None) as client:
        converse(client, options=ChatOptions(system="S"), console=quiet())
    contents = [[message["content"] for message in body["messages"]] for body in api.bodies]
    assert contents == [
        ["S", "How are you?"],
        ["S", "How are you?", "fine", "And now?"],
        ["S", "Who?"],
    ]


def test_a_failed_question_leaves_the_conversation_as_it_was(api, monkeypatch) -> None:
    api.say("fine")

    def refuse_the_second(_prompt: object = "") -> str:
        api.status = 503 if len(api.bodies) == 1 else 200
        if len(api.bodies) == 3:
            raise EOFError
        return f"question {len(api.bodies)}"

    monkeypatch.setattr("builtins.input", refuse_the_second)
    with ChatClient(api.url, api_key=None) as client:
        converse(client, options=ChatOptions(), console=quiet())
    last = [message["content"] for message in api.bodies[-1]["messages"]]
    assert last == ["question 0", "fine", "question 2"]


def test_ctrl_c_stops_the_answer_and_closes_the_stream() -> None:
    closed = []

    def events():
        try:
            yield {"choices": [{"delta": {"content": "one"}}]}
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    answer = Answer(events())
    with pytest.raises(KeyboardInterrupt):
        for _ in answer:
            pass
    assert (answer.text, closed) == ("one", [True])
