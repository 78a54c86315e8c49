"""Watching a root, and the durable journal of what changed in it.

`Watching` (one for a worker) has a `RootWatch` for each root that something uses. That sees changes
(`inotify.py`, `watched_tree.py`), lets bursts settle (`settling.py`), and writes what settled to the
root's journal (`journal.py`), in one file and transaction with an index of how everything looked
(`index.py`, `store.py`). Nothing here knows rules, filters or targets. How a run uses it:

    feed = await watching.open("projects", Consumer("job", "b:projects", b"active"), settle_s=0.05)
    while True:
        await feed.changed()
        batch = await feed.pending()
        ...                               # everything: a whole pass; else Scope.of(batch.paths)
        await feed.done(batch, failed=...)
    await feed.close()                    # what is pending is kept, and grows
    await watching.forget("projects", consumer)   # the job is gone: nothing is kept for it any more
"""
