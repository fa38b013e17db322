"""The texts that ask a vision-language model for captions.

The prompts of SACap-1M are not published; these are our own. Another wording gives other captions, so every record
names PROTOCOL and the digest, and a changed prompt needs another PROTOCOL.
"""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType

PROTOCOL = "sacap-captions-1"
PROMPTS = MappingProxyType(
    {
        "image": (
            "Describe this photo in one paragraph of about 60 words: what it shows, how things lie to each other, the "
            "place, the light, the style. Say only what can be seen. Begin with what is shown, not with words such as "
            "'the image'. Answer with the description only."
        ),
        "region": (
            "Both pictures show one region of a photo. In the first, the whole photo, the region is outlined in "
            "magenta; the second is the region cut out, and what is dimmed does not belong to it. Describe the region "
            "in about 15 words, at most 30: what it is, its colours, shape, material, and what it does. Do not mention "
            "the outline, the dimming or what lies around the region. Answer with the description only."
        ),
    }
)
PROMPTS_SHA256 = hashlib.sha256(json.dumps(dict(PROMPTS), sort_keys=True).encode()).hexdigest()
LONGEST = MappingProxyType({"image": 200, "region": 80})  # tokens of an answer at most
SIDE = 448  # pixels of the longest side of every picture that is shown
VERSION = f"{PROTOCOL} {PROMPTS_SHA256[:16]}"
