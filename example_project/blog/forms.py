from django import forms

from example_project.films.forms import LONGEST_QUERY


class PostSearchForm(forms.Form):
    """Text to search for. What is wrong with it is left out of the search, with a message."""

    q = forms.CharField(
        label="What do you want to read about?",
        required=False,
        max_length=LONGEST_QUERY,
        widget=forms.TextInput(
            {
                "type": "search",
                "placeholder": "why old films catch fire",
                "autocomplete": "off",
                "enterkeyhint": "search",
            }
        ),
        error_messages={"max_length": f"Search for {LONGEST_QUERY} characters at most."},
    )
