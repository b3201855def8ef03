"""Run as a program: several threads write until somebody kills us, and say so after each answered write."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from llamaman import Put
from llamaman_store_json import JsonStore


def main() -> None:
    store = JsonStore(Path(sys.argv[1]))

    def write(name: str, collection: str) -> None:
        number = 0
        while True:
            number += 1
            store.batch(collection, [Put(f"{name}-left", number), Put(f"{name}-right", number)])
            os.write(1, f"{collection} {name} {number}\n".encode())

    threads = [
        threading.Thread(target=write, args=(f"w{number}", collection))
        for number, collection in enumerate(["instances", "downloads", "presets", "presets"])
    ]
    for thread in threads:
        thread.start()


main()
