"""The model list as the SDK reads it."""

import models
import openai
import pytest


def test_the_list_is_the_upstreams(customer):
    listed = {model.id: model for model in customer.client().models.list()}
    assert set(listed) == {model.name for model in models.ALL}
    assert all(model.object == "model" and model.owned_by for model in listed.values())
    assert customer.books.records() == []


@pytest.mark.parametrize("model", [models.PLAIN, models.UNICODE], ids=lambda model: model.name)
def test_one_model_whose_name_may_have_slashes(customer, model):
    assert customer.client().models.retrieve(model.name).id == model.name


def test_an_unknown_model_is_not_found(customer):
    with pytest.raises(openai.NotFoundError) as caught:
        customer.client().models.retrieve("house/multi")
    assert caught.value.code == "model_not_found"


def test_the_list_needs_a_key(customer):
    with pytest.raises(openai.AuthenticationError):
        customer.client(api_key="sk-tg-wrong").models.list()
