//! What the two ways of a write share: the script of plain appends, that of all others, and the producers of both.

use super::{fresh_server, *};

/// How many times the server was asked for a command, by clients and scripts together.
async fn calls(server: &RedisServer, command: &str) -> u64 {
    let told = server.command("INFO commandstats").await.unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn the_next_append_of_a_run_takes_one_script_and_all_others_get_the_answer_of_the_one_write() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, granted) = granted(&store).await;
    let (r1, fence) = ("r1".parse().unwrap(), granted.fence.unwrap());
    let write = |incarnation, batch| Write {
        run: Some(&r1),
        producer: producer("run:r1", incarnation, batch),
        fence: Some((&r1, fence)),
        ..one()
    };
    let first = store.write(&key, write(1, 1)).await.unwrap();
    // Each script reads the session once.
    let before = calls(&server, "hmget").await;
    for batch in 2..=11 {
        let written = store.write(&key, write(1, batch)).await.unwrap();
        assert_eq!(written.to, Seq(first.to.0 + batch - 1));
        assert_eq!((written.epoch, written.version, written.duplicate), (first.epoch, first.version, None));
        assert!(written.at >= first.at && written.fence.is_none());
    }
    assert_eq!(calls(&server, "hmget").await - before, 10);
    assert_eq!(store.load(&key).await.unwrap().unwrap().producers, [(r1.clone(), 1, 11)]);
    for known in [1, 2, 11] {
        let again = store.write(&key, write(1, known)).await.unwrap();
        assert_eq!((again.to, again.duplicate.unwrap().batch), (Seq(first.to.0 + 10), 11));
    }
    assert_eq!(refused(&store, &key, write(1, 13)).await, Refusal::Gap { expected: 12 });
    assert_eq!(refused(&store, &key, write(2, 12)).await, Refusal::Gap { expected: 1 });
    // 1 and 11 begin alike.
    assert_eq!(refused(&store, &key, write(1, 112)).await, Refusal::Gap { expected: 12 });
    let other = Write { fence: Some((&r1, everthread_protocol::Fence(fence.0 + 1))), ..write(1, 12) };
    assert_eq!(refused(&store, &key, other).await, Refusal::Fenced);
    server.command(&format!("HSET et:{{{key}}}:meta replid another")).await.unwrap();
    let moved = store.write(&key, write(1, 12)).await.unwrap();
    assert!(moved.epoch > first.epoch && moved.to == Seq(first.to.0 + 11), "another primary: {moved:?}");
    assert_eq!(store.write(&key, write(1, 13)).await.unwrap().epoch, moved.epoch);
    let text = suite::texts(&read_all(&store, &key, Seq(0), suite::ALL).await);
    assert_eq!(text.len(), 15);
}

#[tokio::test]
async fn the_producer_of_a_run_goes_with_its_fence_and_comes_back_with_it() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, granted) = granted(&store).await;
    let r1 = "r1".parse().unwrap();
    let write = |fence, batch| Write {
        producer: producer("run:r1", 1, batch),
        fence: Some((&r1, fence)),
        ..append("[]", 0)
    };
    let fence = granted.fence.unwrap();
    store.write(&key, write(fence, 1)).await.unwrap();
    // Suspended, in a write of its own.
    let suspend = Change { revoke: std::slice::from_ref(&r1), ..change(Some(granted.version), "suspended") };
    let suspended = store.write(&key, Write { change: Some(suspend), ..write(fence, 2) }).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().producers, []);
    assert!(store.write(&key, write(fence, 2)).await.unwrap().duplicate.is_some());
    assert_eq!(server.command(&format!("HEXISTS et:{{{key}}}:meta p:r1")).await.unwrap(), ":0\r\n");
    // Resumed by another worker.
    let resume = Change { grant: Some(&r1), ..change(Some(suspended.version), "resumed") };
    let resumed = store.write(&key, Write { change: Some(resume), ..one() }).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().producers, [(r1.clone(), 1, 2)]);
    assert_eq!(server.command(&format!("HLEN et:{{{key}}}:producers")).await.unwrap(), ":0\r\n");
    store.write(&key, write(resumed.fence.unwrap(), 3)).await.unwrap();
    // Lost: nobody numbers the write that ends it.
    let end = Change { revoke: std::slice::from_ref(&r1), ..change(Some(resumed.version), "lost") };
    store.write(&key, Write { change: Some(end), ..one() }).await.unwrap();
    assert_eq!(store.write(&key, write(fence, 3)).await.unwrap().duplicate.unwrap().batch, 3);
}

#[tokio::test]
async fn old_producers_make_room_but_not_those_of_a_run_with_a_fence() {
    let (store, _kept) = fresh_server().await;
    let (key, _) = granted(&store).await;
    fn numbered(key: &str) -> Write<'_> {
        Write { producer: producer(key, 1, 1), ..append("[]", 0) }
    }
    store.write(&key, numbered("run:r1")).await.unwrap();
    for n in 0..2_500 {
        store.write(&key, numbered(&format!("put:ann:{n}"))).await.unwrap();
    }
    let known = async |name: &str| store.write(&key, numbered(name)).await.unwrap().duplicate.is_some();
    assert!(known("run:r1").await);
    assert!(known("put:ann:2499").await && known("put:ann:1700").await);
    assert!(!known("put:ann:1").await);
}
