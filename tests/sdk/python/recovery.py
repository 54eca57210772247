"""What a client that was away finds when it comes back: everything in order and once, or a word
that something is missing."""

from centrifuge import DeltaType, StreamPosition

from stage import STATES, Seen, ask, by, check, connected, followed, publish, up_to

EVENTS = ("subscribed", "subscribing", "unsubscribed", "publication")

ALL, LOST = (True, True), (True, False)


def outcome(context):
    return (context.was_recovering, context.recovered)


async def publications_survive_a_cut():
    ana = await connected(await by({"sub": "ana"}))
    _, seen, begun = await followed(ana, "news:x")
    check("recoverable", (begun.recoverable, begun.positioned, outcome(begun)), (True, True, (False, False)))
    await publish("news:x", 1, 5)
    check("live", await seen.publications(5), up_to(5))
    for first in (6, 21, 41):
        await ask("cut_after", bytes=500)
        last = 20 if first == 6 else first + 19
        await publish("news:x", first, last)
        found, again = [], []
        while len(found) < last - first + 1:
            name, context = await seen.any()
            if name == "publication":
                found.append(context.pub.data["n"])
            if name == "subscribed":
                again.append(outcome(context))
        check("nothing missing, nothing twice", found, up_to(last, first))
        check("recovered once", again, [ALL])
    seen.quiet("nothing more")


async def differences_come_out_whole():
    text = "the same words in every publication, " * 20

    def whole(context):
        data = context.pub.data
        return data["n"] if data["text"] == text else data

    async def tell(first, last):
        await ask("publish", channel="diff:x", text=text, **{"from": first, "to": last})

    ana = await connected(await by({"sub": "ana"}))
    await tell(1, 2)
    _, seen, _ = await followed(ana, "diff:x", delta=DeltaType.FOSSIL)
    await tell(3, 20)
    check("whole", await seen.publications(18, whole), up_to(20, 3))
    await ask("cut")
    await seen.next("subscribing")
    await tell(21, 30)
    await ask("mend")
    check("recovered", outcome(await seen.next("subscribed")), ALL)
    check("what was missed too", await seen.publications(10, whole), up_to(30, 21))
    await tell(31, 32)
    check("and live again", await seen.publications(2, whole), [31, 32])


async def who_missed_too_much_is_told():
    ana = await connected(await by({"sub": "ana"}))
    _, seen, begun = await followed(ana, "brief:x")
    for first, last, expected in ((1, 2, ALL), (3, 5, LOST)):
        await ask("cut")
        await seen.next("subscribing")
        await publish("brief:x", first, last)
        await ask("mend")
        back = await seen.next("subscribed")
        check(f"{last - first + 1} were missed", outcome(back), expected)
        if expected == ALL:
            check("all of them", await seen.publications(2), [1, 2])
    position = StreamPosition(5, begun.stream_position.epoch)
    check("where it begins anew", back.stream_position, position)
    await publish("brief:x", 6, 7)
    check("the channel goes on", await seen.publications(2), [6, 7])
    seen.quiet("without what was lost")


async def who_unsubscribes_can_come_back():
    ana = await connected(await by({"sub": "ana"}))
    sub, seen, _ = await followed(ana, "news:x")
    await publish("news:x", 1, 2)
    check("live", await seen.publications(2), [1, 2])
    await sub.unsubscribe()
    await seen.next("unsubscribed")
    await publish("news:x", 3, 5)
    await sub.subscribe()
    await seen.next("subscribing")
    check("recovered", outcome(await seen.next("subscribed")), ALL)
    check("what was missed", await seen.publications(3), [3, 4, 5])


async def state_and_stream_fit_together():
    ana = await connected(await by({"sub": "ana"}))
    await publish("news:x", 1, 3)

    async def from_the_first(_channel):
        return StreamPosition(0, "")

    _, seen, begun = await followed(ana, "news:x", get_state=from_the_first)
    check("everything from the first", outcome(begun), ALL)
    check("in order", await seen.publications(3), [1, 2, 3])
    top, asked = await publish("brief:x", 1, 5), []

    async def then_the_state(_channel):
        asked.append(1)
        return StreamPosition(0, "") if len(asked) == 1 else StreamPosition(4, top["epoch"])

    _, rest, again = await followed(ana, "brief:x", get_state=then_the_state)
    check("a position that is gone asks again", (len(asked), outcome(again)), (2, ALL))
    check("behind the state", await rest.publications(1), [5])


async def the_server_subscribes_and_recovers():
    seen = Seen("subscribed", "subscribing", "unsubscribed", "publication")
    claims = {"sub": "ana", "channels": ["news:a"], "subs": {"news:b": {"data": {"hello": 1}}}}
    ana = await by(claims, seen)
    await ana.connect()
    begun = [await seen.next("subscribed") for _ in range(2)]
    check("both begin", {c.channel: c.data for c in begun}, {"news:a": None, "news:b": {"hello": 1}})
    where = lambda context: (context.channel, context.pub.data["n"])
    await publish("news:a", 1, 2)
    check("live", await seen.publications(2, where), [("news:a", 1), ("news:a", 2)])
    await ask("cut")
    left = [(await seen.next("subscribing")).channel for _ in range(2)]
    check("both are left", sorted(left), ["news:a", "news:b"])
    await publish("news:a", 3, 4)
    await publish("news:b", 1, 2)
    await ask("mend")
    # Publications of one may come before the word about the other.
    events = [await seen.any() for _ in range(6)]
    back = [outcome(context) for name, context in events if name == "subscribed"]
    check("both recover", back, [ALL, ALL])
    missed = [where(context) for name, context in events if name == "publication"]
    check("all of it", sorted(missed), [("news:a", 3), ("news:a", 4), ("news:b", 1), ("news:b", 2)])
    seen.quiet("and nothing twice")


async def a_returning_client_outlives_restarts():
    states = Seen(*STATES)
    ana = await by({"sub": "ana"}, states)
    await connected(ana)
    await states.next("connecting")
    await states.next("connected")
    _, seen, _ = await followed(ana, "news:x")
    last = 0
    for _ in range(2):
        await publish("news:x", last + 1, last + 3)
        check("live", await seen.publications(3), up_to(last + 3, last + 1))
        await ask("cut")
        await seen.next("subscribing")
        await publish("news:x", last + 4, last + 6)
        await ask("restart")
        await publish("news:x", last + 7, last + 9)
        await ask("mend")
        check("recovered over a restart", outcome(await seen.next("subscribed")), ALL)
        check("from before and after it", await seen.publications(6), up_to(last + 9, last + 4))
        last += 9
    seen.quiet("nothing twice")
