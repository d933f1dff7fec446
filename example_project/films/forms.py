"""The search form. What is wrong in it is left out of the search, with a message."""

from typing import Any

from django import forms

from example_project.films.models import Genre

PAGES = 10
LONGEST_QUERY = 300


def genres() -> list[tuple[str, str]]:
    names = Genre.objects.values_list("name", flat=True)
    return [("", "All"), *((name, name) for name in names)]


class YearField(forms.IntegerField):
    widget = forms.TextInput

    def __init__(self, label: str) -> None:
        wrong = f"{label}: give a year such as 1995. This filter is left out."
        messages = dict.fromkeys(("invalid", "min_value", "max_value"), wrong)
        super().__init__(
            label=label, required=False, min_value=1800, max_value=2200, error_messages=messages
        )
        self.widget.attrs.update({"inputmode": "numeric", "size": 4, "autocomplete": "off"})


class SearchForm(forms.Form):
    """Text, filters and page: ``cleaned_data`` has those that are right."""

    q = forms.CharField(
        label="What is the film about?",
        required=False,
        max_length=LONGEST_QUERY,
        widget=forms.TextInput(
            {
                "type": "search",
                "placeholder": "a rat who wants to cook",
                "autocomplete": "off",
                "enterkeyhint": "search",
            }
        ),
        error_messages={"max_length": f"Search for {LONGEST_QUERY} characters at most."},
    )
    genre = forms.ChoiceField(
        label="Genre",
        required=False,
        choices=genres,
        error_messages={
            "invalid_choice": "Genre: there is none named “%(value)s”. All genres are shown."
        },
    )
    year_from = YearField("From year")
    year_to = YearField("To year")
    page = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=PAGES,
        error_messages=dict.fromkeys(
            ("invalid", "min_value", "max_value"), "There is no such page. This is the first one."
        ),
    )

    def clean(self) -> dict[str, Any]:
        values = self.cleaned_data
        first, last = values.get("year_from"), values.get("year_to")
        if first is not None and last is not None and first > last:
            self.add_error("year_to", f"Years: {last} is before {first}. Both are left out.")
            values.pop("year_from")
        return values
