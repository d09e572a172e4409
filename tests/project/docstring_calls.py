"""Calls of the functions that the code in a docstring defines, so the test runs their bodies too."""

CALLS = {
    "trio_offload_worker.resident_memory": "await trio_offload.run_sync(parse_all, ['a'])",
    "trio_offload_worker.handles.Barrier": """
        barrier, figures = trio_offload.Barrier(2), []
        async def party(): figures.append(await trio_offload.run_sync(measure, barrier))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(party)
            nursery.start_soon(party)
        assert figures == [5.0, 5.0]
    """,
    "trio_offload_worker.handles.Callback": """
        questions = []
        ask = trio_offload.callback(questions.append)
        await trio_offload.run_sync(export, "rows.csv", ask)
        await trio_offload.run_sync(export, "rows.csv", ask)
        assert questions == ["Replace rows.csv?"]
    """,
    "trio_offload_worker.handles.CapacityLimiter": """
        downloads = trio_offload.CapacityLimiter(1)
        assert await trio_offload.run_sync(fetch_or_cached, "a", downloads) == "new"
        async with downloads:
            assert await trio_offload.run_sync(fetch_or_cached, "a", downloads) == "old"
    """,
    "trio_offload_worker.handles.Condition": """
        changed, releases = trio_offload.Condition(), []
        async with trio_offload.share(releases) as shared, trio.open_nursery() as nursery:
            nursery.start_soon(trio_offload.run_sync, build, "1.2", shared, changed)
            async with changed:
                releases.append("1.2")
                changed.notify_all()
    """,
    "trio_offload_worker.handles.Event": """
        stop = trio_offload.Event()
        stop.set()
        await trio_offload.run_sync(convert_all, ["a"], stop)
    """,
    "trio_offload_worker.handles.Lease": """
        queue = trio_offload.WorkQueue()
        for path in (".", "missing"):
            await queue.put(path)
        queue.close()
        await trio_offload.run_sync(convert_from, queue)
        try:
            await queue.join()
        except trio_offload.FailedItemsError as error:
            assert [failed.item for failed in error.failed] == ["missing"]
        else:
            raise AssertionError
    """,
    "trio_offload_worker.handles.Lock": """
        import pathlib
        await trio_offload.run_sync(append, "one", trio_offload.Lock())
        assert pathlib.Path("log.txt").read_text() == "one"
    """,
    "trio_offload_worker.handles.RLock": """
        import pathlib
        await trio_offload.run_sync(write_all, {pathlib.Path("a.txt"): "a"}, trio_offload.RLock())
        assert pathlib.Path("a.txt").read_text() == "a"
    """,
    "trio_offload_worker.handles.ReceiveChannel": """
        import pathlib
        send, receive = trio_offload.open_channel(10)
        await send.send_many(["a\\n", "b\\n"])
        send.close()
        await trio_offload.run_sync(save, "lines.txt", receive)
        assert pathlib.Path("lines.txt").read_text() == "a\\nb\\n"
    """,
    "trio_offload_worker.handles.Semaphore": """
        assert await trio_offload.run_sync(query, "select 1", trio_offload.Semaphore(1)) == ["select 1"]
    """,
    "trio_offload_worker.handles.SendChannel": """
        import pathlib
        pathlib.Path("folder").mkdir()
        pathlib.Path("folder", "file").touch()
        send, receive = trio_offload.open_channel(10)
        await trio_offload.run_sync(list_files, "folder", send.move())
        assert [name async for name in receive] == ["file"]
    """,
    "trio_offload_worker.handles.SharedArray": """
        with trio_offload.SharedArray.allocate((2, 2), "float64") as shared:
            shared.array[:] = [[1, 3], [5, 5]]
            await trio_offload.run_sync(center, 0, 1, shared)
            assert shared.array.tolist() == [[-1, 1], [5, 5]]
    """,
    "trio_offload_worker.handles.SharedCounter": """
        import pathlib
        pathlib.Path("text").write_text("one two\\nthree")
        words = trio_offload.SharedCounter()
        await trio_offload.run_sync(count_words, "text", words)
        assert words.value == 3
    """,
    "trio_offload_worker.handles.WorkQueue": """
        paths = trio_offload.WorkQueue()
        await paths.put("a")
        paths.close()
        send, receive = trio_offload.open_channel(10)
        await trio_offload.run_sync(digest_files, paths, send)
        assert receive.receive_nowait() == "A"
    """,
    "trio_offload_worker.from_worker.AbandonedLockError": """
        import contextlib
        lock = trio_offload.Lock()
        await trio_offload.run_sync(append, lock, "lines.txt", "one")
        def holder(lock): lock.acquire()
        with contextlib.suppress(RuntimeError):
            await trio_offload.run_sync(holder, lock)
        try:
            await trio_offload.run_sync(append, lock, "lines.txt", "two")
        except trio_offload.AbandonedLockError as error:
            assert error.function
        else:
            raise AssertionError
    """,
    "trio_offload_worker.from_worker.BrokenBarrierError": """
        barrier = trio_offload.Barrier(2)
        barrier.abort()
        assert await trio_offload.run_sync(simulate, barrier, 1) == 0
    """,
    "trio_offload_worker.from_worker.BrokenResourceError": """
        send, receive = trio_offload.open_channel(10)
        receive.close()
        await trio_offload.run_sync(search, [1], send)
    """,
    "trio_offload_worker.from_worker.Cancelled": """
        import contextlib
        import pathlib
        pathlib.Path("source").write_text("a")
        await trio_offload.run_sync(convert, "source", "target")
        assert pathlib.Path("target").read_text() == "A"
        os.mkfifo("slow")
        scope = trio.CancelScope()
        async def cancel():
            # It opens when the job has opened the other end. The job reads until it knows.
            with contextlib.suppress(BrokenPipeError), await trio.to_thread.run_sync(open, "slow", "w", 1) as file:
                scope.cancel()
                while not scope.cancelled_caught:
                    file.write("a\\n")
                    await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            with scope:
                await trio_offload.run_sync(convert, "slow", "target")
        assert scope.cancelled_caught
        assert not pathlib.Path("target").exists()
    """,
    "trio_offload_worker.from_worker.ClosedResourceError": """
        queue = trio_offload.WorkQueue()
        queue.close()
        await trio_offload.run_sync(crawl, queue, ["a"])
    """,
    "trio_offload_worker.from_worker.DeadlockError": """
        import types
        ours, theirs = (types.SimpleNamespace(lock=trio_offload.Lock()) for _ in range(2))
        async with theirs.lock:
            assert await trio_offload.run_sync(move, 5, ours, theirs) is False
    """,
    "trio_offload_worker.from_worker.EndOfChannel": """
        send, receive = trio_offload.open_channel(10)
        async with send:
            await send.send(5)
        await trio_offload.run_sync(store_batches, receive)
    """,
    "trio_offload_worker.from_worker.Job": "await trio_offload.run_sync(work, 'a.csv')",
    "trio_offload_worker.from_worker.JobEndedError": """
        def begin():
            def run(job):
                job.adopt()
                started.set()
                report_load()
                threading.ended = True
            started = threading.Event()
            threading.load = threading.Thread(target=run, args=(from_worker.job(),))
            threading.load.start()
            started.wait()
        def end():
            threading.load.join()
            return threading.ended
        await trio_offload.run_sync(begin)
        assert await trio_offload.run_sync(end)
    """,
    "trio_offload_worker.from_worker.RemoteError": """
        assert "NoSuchUser" in await trio_offload.run_sync(job, "me")
    """,
    "trio_offload_worker.from_worker.job": "assert await trio_offload.run_sync(convert_all, ['a']) == ['a']",
    "trio_offload_worker.from_worker.progress": """
        import pathlib
        pathlib.Path("data").write_bytes(b"data")
        seen = []
        value = await trio_offload.run_sync(checksum, "data", progress=lambda *step: seen.append(step))
        assert value == zlib.crc32(b"data")
        assert seen[-1][:2] == (4, 4)
    """,
    "trio_offload_worker.from_worker.run": "assert await trio_offload.run_sync(count_addresses, '127.0.0.1')",
    "trio_offload_worker.from_worker.run_async": "await trio_offload.run_sync(job, ['a', 'b'])",
    "trio_offload_worker.from_worker.run_sync": """
        import pathlib
        pathlib.Path("empty").touch()
        await trio_offload.run_sync(check_sizes, ["empty"])
    """,
    "trio_offload_worker.from_worker.sleep": """
        await trio_offload.run_sync(wait_for_file, ".")
        with trio.move_on_after(0.1) as scope:
            await trio_offload.run_sync(wait_for_file, "missing")
        assert scope.cancelled_caught
    """,
}
