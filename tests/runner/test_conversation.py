"""A chat's memory: what the model sees of it, and what goes when the context is full."""

from types import SimpleNamespace

import pytest

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.conversation import Conversation


class WordSession:
    """A session whose tokens are words; a message has one more, its role."""

    def __init__(self, context, refused=()):
        self.engine = SimpleNamespace(context=context)
        self._refused = refused

    def encode_chat(self, messages):
        if any(message["role"] in self._refused for message in messages):
            raise EdgeAwqError("no such role")
        return [word for message in messages for word in (message["role"], *message["content"].split())]


def words(number, begin="w"):
    return " ".join(f"{begin}{index}" for index in range(number))


def test_every_turn_sees_all_turns_before():
    chat = Conversation(WordSession(100), system="be brief")
    assert chat.ask("a b") == ["system", "be", "brief", "user", "a", "b"]
    chat.answered("c")
    assert chat.ask("d") == ["system", "be", "brief", "user", "a", "b", "assistant", "c", "user", "d"]
    assert chat.forgotten == 0
    chat.answered("e")
    chat.clear()
    assert chat.ask("f") == ["system", "be", "brief", "user", "f"]


def test_the_oldest_turns_go_until_half_of_the_context_is_free_and_instructions_stay():
    chat = Conversation(WordSession(40), system="be brief", max_tokens=4)  # prompts have up to 36 tokens
    for turn in range(4):
        ids = chat.ask(words(3, f"q{turn}"))
        assert chat.forgotten == 0 and len(ids) == 3 + turn * 8 + 4
        chat.answered(words(3, f"a{turn}"))
    ids = chat.ask(words(3, "q4"))  # 39 would be too many: 20 are kept at most
    assert chat.forgotten == 6
    assert " ".join(ids) == "system be brief user q30 q31 q32 assistant a30 a31 a32 user q40 q41 q42"
    chat.answered("fine")
    chat.ask("on")
    assert chat.forgotten == 0


def test_a_message_larger_than_the_context_is_refused_and_leaves_no_trace():
    chat = Conversation(WordSession(20))
    chat.ask("a")
    chat.answered("b")
    before = list(chat.messages)
    with pytest.raises(EdgeAwqError, match="21 tokens, and the context has room for 20"):
        chat.ask(words(20))
    assert chat.messages == before
    assert len(chat.ask(words(19))) == 20 and chat.forgotten == 2  # it fits alone, with room for one token


def test_a_question_without_an_answer_counts_as_not_asked():
    chat = Conversation(WordSession(20))
    chat.ask("a")
    assert chat.messages == [] and chat.ask("b") == ["user", "b"]
    chat.answered("")
    assert chat.ask("c") == ["user", "b", "assistant", "user", "c"]


def test_instructions_that_the_template_refuses_are_refused_at_once():
    with pytest.raises(EdgeAwqError, match="no such role"):
        Conversation(WordSession(20, refused=("system",)), system="x")
