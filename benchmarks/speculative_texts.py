"""Prompts whose greedy answers by a small model repeat much of what was there before, and two that don't."""

ARTICLE = (
    "The Rosetta Stone is a stele of granodiorite inscribed with three versions of a decree issued in 196 BC. The top and "
    "middle texts are in Ancient Egyptian using hieroglyphic and Demotic scripts, while the bottom is in Ancient Greek. The "
    "decree has only minor differences across the three versions, making the Rosetta Stone key to deciphering Egyptian scripts."
)
MINUTES = (
    "The library committee met on Tuesday. Dr. Halvorsen reported that the new reading room on the second floor will open on "
    "the first of March. The committee agreed to extend the opening hours of the reading room until nine in the evening. "
    "Ms. Okafor asked for a second scanner, because the old scanner in the reading room breaks down every week. The committee "
    "agreed to buy a second scanner before the reading room opens. The next meeting of the library committee is on the fourth "
    "of April."
)
RIVER = (
    "The Danube is the second-longest river in Europe, after the Volga in Russia. It flows through Central and Southeastern "
    "Europe, from the Black Forest south into the Black Sea. A large and historically important river, it was once a frontier "
    "of the Roman Empire. Among the many cities on the river are four national capitals: Vienna, Bratislava, Budapest, and "
    "Belgrade."
)
AREA = """def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return width * height


def perimeter(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return 2 * (width + height)
"""
STACK = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("peek into an empty stack")
        return self.items[-1]
"""
READ = """def read_config(path):
    with open(path) as file:
        lines = file.readlines()
    config = {}
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, value = line.split("=", 1)
        config[key.strip()] = value.strip()
    return config
"""
ITEMS = "\n".join(f'{{"id": {i}, "name": "item {i}", "price": {10 * i}, "in_stock": true}}' for i in range(1, 6))
STAFF = (
    '[\n  {"name": "Ann Lee", "age": 31, "city": "Oslo", "job": "engineer"},\n'
    '  {"name": "Bob Roy", "age": 45, "city": "Rome", "job": "teacher"},\n'
    '  {"name": "Carla Diaz", "age": 28, "city": "Lima", "job": "nurse"},\n'
    '  {"name": "Dev Patel", "age": 52, "city": "Pune", "job": "baker"}\n]'
)
SENSORS = (
    '{"sensor": "t-01", "room": "kitchen", "unit": "celsius", "active": true}\n'
    '{"sensor": "t-02", "room": "office", "unit": "celsius", "active": true}\n'
    '{"sensor": "t-03", "room": "hall", "unit": "celsius", "active": true}\n'
)

# name -> what the user says; the answer may be begun, as programs that want a format do.
TASKS = {
    "summary, quoting": ("Summarise this text in two sentences that quote it word for word:\n\n" + ARTICLE, ""),
    "summary of minutes": ("Summarise these minutes. Use the words of the minutes.\n\n" + MINUTES, ""),
    "summary, own words": ("Give a short summary of the following text.\n\n" + RIVER, ""),
    "code: docstrings": ("Add a docstring to each function and repeat the rest of the code as it is:\n\n" + AREA, ""),
    "code: new name": (f"Rename the class Stack to Pile in this code. Print the whole code.\n\n```python\n{STACK}```", ""),
    "code: variable": (f"Rename the variable config to settings and repeat the whole function:\n\n```python\n{READ}```", ""),
    "json: more items": (
        "Continue this list with items 6 to 12, in the same format:\n\n" + ITEMS,
        '{"id": 6, "name": "item 6",',
    ),
    "json: one value": ("Change Bob Roy's city to Turin in this JSON and print all of it:\n\n" + STAFF, "[\n"),
    "json: more sensors": (
        "Add sensors for the cellar, the attic and the garage:\n\n" + SENSORS,
        SENSORS + '{"sensor": "t-04",',
    ),
    "prose: a story": ("Write a short story about a lighthouse keeper who collects sounds.", ""),
    "prose: why": ("Explain to a child why the sky is blue.", ""),
}
