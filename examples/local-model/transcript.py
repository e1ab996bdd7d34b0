"""Asks a question, closes the connection in the middle of the answer, comes back, and prints what happened.

Needs a running `everthread dev`, the worker of run.sh, EVERTHREAD_TOKEN, and `pip install websockets`.
"""

import asyncio
import json
import os
import time
import urllib.request

import websockets

BASE = os.environ.get("EVERTHREAD_URL", "http://127.0.0.1:7400").replace("ws:", "http:")
URL = BASE.replace("http:", "ws:") + "/v1/connect"
H = {"Authorization": "Bearer " + os.environ["EVERTHREAD_TOKEN"]}


def http(method, path, body=None):
    r = urllib.request.Request(
        BASE + path, method=method, headers=H, data=json.dumps(body).encode() if body is not None else None
    )
    return json.load(urllib.request.urlopen(r))


t0 = time.time()


def log(s):
    print(f"{time.time()-t0:7.3f}  {s}")


async def conn():
    ws = await websockets.connect(URL, subprotocols=["everthread.v1"], additional_headers=H)
    await ws.send(json.dumps({"t": "hello", "id": "h", "subject": "ann"}))
    return ws


async def main():
    log(
        "POST /v1/sessions "
        + json.dumps(http("POST", "/v1/sessions", {"session": "capital", "agent": "smollm2"}))
    )
    ws = await conn()
    await ws.send(json.dumps({"t": "attach", "id": "a", "session": "capital", "from": "start"}))
    await ws.send(
        json.dumps(
            {
                "t": "put",
                "id": "q1",
                "attachment": 1,
                "entries": [
                    {
                        "type": "message.put",
                        "role": "user",
                        "parts": [
                            {
                                "kind": "text",
                                "value": "Explain in a few short paragraphs why the sky is blue.",
                            }
                        ],
                    }
                ],
            }
        )
    )
    text = ""
    seen = None
    n = 0
    async for raw in ws:
        f = json.loads(raw)
        if f["t"] != "entries":
            log("← " + raw[:200])
            continue
        n += 1
        appended = "".join(e["text"] for b in f["blocks"] for e in b["entries"] if e["type"] == "part.append")
        text += appended
        cur = f"{f['epoch']}.{f['to']}"
        if n <= 8 or n % 10 == 0:
            log(
                f"← entries {f['from']}..{f['to']} "
                + json.dumps(appended if appended else [e["type"] for b in f["blocks"] for e in b["entries"]])
            )
        if len(text) > 250:
            break
    log(f"-- the page is reloaded: socket closed at cursor {cur}, {len(text)} characters shown --")
    await ws.close()
    before = text
    await asyncio.sleep(0.7)
    ws = await conn()
    await ws.send(json.dumps({"t": "attach", "id": "a", "session": "capital", "from": {"recent": 50}}))
    n = 0
    async for raw in ws:
        f = json.loads(raw)
        if f["t"] == "snapshot":
            m = f["messages"][-1]
            text = m["parts"][0]["value"]
            log(
                f"← snapshot up to seq {f['seq']}: answer is {m['status']}, {len(text)} characters, begins with what was shown before: {text.startswith(before)}"
            )
            continue
        if f["t"] != "entries":
            log("← " + raw[:160])
            continue
        ends = []
        n += 1
        shown = ""
        for b in f["blocks"]:
            for e in b["entries"]:
                if e["type"] == "part.append":
                    assert len(text.encode()) == e["offset"]
                    text += e["text"]
                    shown += e["text"]
                if e["type"] == "run.ended":
                    ends.append(e["outcome"])
        if n <= 5 or n % 20 == 0 or ends:
            log(
                f"← entries {f['from']}..{f['to']} "
                + json.dumps(shown if shown else [e["type"] for b in f["blocks"] for e in b["entries"]])
            )
        if ends:
            break
    state = http("GET", "/v1/sessions/capital/state")
    final = state["messages"][-1]["parts"][0]["value"]
    log(
        f"run ended: {ends[0]}; GET state holds {len(final)} characters; what the reloaded page holds is the same: {final==text}"
    )
    print("\n--- the answer ---\n" + final)


asyncio.run(main())
