"""Rows: what a record of an export says about a post. No row holds a user's name or id."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Photo:
    """A post with an image.

    Attributes:
        post_id: of the post.
        image: path of the image in the directory of images, or "".
        names: file names without their ending to look for there, if `image` is "".
        sensitive: whether the author hid the image behind a warning.
    """

    post_id: str
    image: str = ""
    names: tuple[str, ...] = ()
    sensitive: bool = False


@dataclass(frozen=True)
class Comment:
    """An answer to a post, or to another comment of it.

    Attributes:
        post_id: of the post, or `own_id` of the comment that it answers.
        key: distinguishes the comments of a post, and orders them. The same key twice is the same comment.
        text: what was written.
        own_id: of the comment, where others may answer it by this id; "" otherwise.
    """

    post_id: str
    key: str
    text: str
    own_id: str = ""


@dataclass(frozen=True)
class Clicks:
    """Clicks on a button.

    Attributes:
        post_id: of the post.
        button: the name of the button.
        key: distinguishes what adds up, e.g. single likes; "" for a total. Of the same key twice, the larger counts.
        count: number of clicks.
    """

    post_id: str
    button: str
    key: str
    count: int


Row = Photo | Comment | Clicks
