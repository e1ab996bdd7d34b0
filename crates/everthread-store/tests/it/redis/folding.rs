//! Folds and trims on a Redis that is killed, loses its tail, or is full.

use super::*;

#[tokio::test]
async fn a_killed_server_comes_back_with_every_fold_whole_or_not_at_all() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let mut server = RedisServer::start_with(options).await.unwrap();
    let (store, _stop) = connect(&server.url()).await;
    let (key, _) = created(&store).await;
    let mut writers = Writers::start(&store, &key).await;
    for _ in 0..3 {
        for _ in 0..60 {
            writers.token(&store, &key).await;
        }
        let mut view = View::new();
        catch_up(&store, &key, &mut view, suite::ALL).await;
        // Folds in small steps until the server dies under one of them.
        let some = Notify::new();
        let folding = async {
            let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
            for to in head.folded_to.0 + 1..=head.seq.0 {
                let Ok(page) = store.read(&key, Seq(to - 1), 0).await else { return };
                let records = fold(&page.records, Limits::default()).unwrap();
                if store.fold(&key, Fold { epoch: page.head.epoch, records: &records }).await.is_err() {
                    return;
                }
                if to == head.folded_to.0 + 10 {
                    some.notify_one();
                }
            }
        };
        let killing = async {
            some.notified().await;
            server.kill9();
        };
        tokio::join!(folding, killing);
        server.restart().await.unwrap();
        until(async || store.write(&key, append("[]", 0)).await.ok()).await;
        let mut after = View::new();
        catch_up(&store, &key, &mut after, suite::ALL).await;
        assert_eq!(text(&after), text(&view));
        let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
        let folded = server.command(&format!("XLEN et:{{{key}}}:folded")).await.unwrap();
        let raw = server.command(&format!("XLEN et:{{{key}}}:log")).await.unwrap();
        let number = |answer: String| answer.trim().trim_start_matches(':').parse::<usize>().unwrap();
        assert!(number(folded) > 0, "nothing was folded");
        // Every raw record here but the first two of the writers has one entry.
        assert!(number(raw) as u64 <= head.seq.0 - head.folded_to.0, "raw entries that are folded too");
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_with_every_trim_whole_or_not_at_all() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let mut server = RedisServer::start_with(options).await.unwrap();
    let (store, _stop) = connect(&server.url()).await;
    let key = suite::fresh();
    suite::trimming::fill(&store, &key, 401, 391).await;
    for round in 1..=3 {
        let (mut floor, mut trims) = (Seq(1), 0);
        let some = Notify::new();
        let trimming = suite::trimming::trim_one_by_one(&store, &key, |done| {
            (floor, trims) = (done, trims + 1);
            if trims == 10 * round {
                some.notify_one();
            }
        });
        let killing = async {
            some.notified().await;
            server.kill9();
        };
        tokio::join!(trimming, killing);
        server.restart().await.unwrap();
        until(async || store.write(&key, append("[]", 0)).await.ok()).await;
        suite::trimming::is_whole(&store, &key, floor).await;
    }
}

#[tokio::test]
async fn what_was_read_before_a_tail_was_lost_is_not_folded_over_what_took_its_place() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    for _ in 0..20 {
        store.write(&key, one()).await.unwrap();
    }
    let (epoch, records) = folded(&store, &key, Seq(15), Limits::default()).await;
    // As after a failover: the primary that goes on never had the tail.
    let tail: String = (11..=21).map(|seq| format!(" {seq}-0")).collect();
    server.command(&format!("XDEL et:{{{key}}}:log{tail}")).await.unwrap();
    server.command(&format!("HSET et:{{{key}}}:meta head 10")).await.unwrap();
    let fold = Fold { epoch, records: &records };
    assert_eq!(store.fold(&key, fold).await, Ok(Folded::NoSuchRecord), "shorter");
    server.command(&format!("HSET et:{{{key}}}:meta replid another")).await.unwrap();
    server.command(&format!("XSETID et:{{{key}}}:log 10-0")).await.unwrap();
    for _ in 0..20 {
        store.write(&key, append(r#"[{"type":"x-other"}]"#, 1)).await.unwrap();
    }
    let moved = store.fold(&key, fold).await.unwrap();
    assert!(matches!(moved, Folded::NewEpoch { epoch: new } if new > epoch), "grown again: {moved:?}");
    let texts = suite::texts(&read_all(&store, &key, Seq(10), suite::ALL).await);
    assert!(texts.len() == 20 && texts.iter().all(|entry| entry["type"] == "x-other"));
    // What is left of the old epoch and what is of the new one can be folded in one go, and stay apart.
    let (epoch, records) = folded(&store, &key, Seq(25), Limits::default()).await;
    assert_eq!(records.len(), 2);
    assert_eq!(store.fold(&key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
    let mut view = View::new();
    catch_up(&store, &key, &mut view, suite::ALL).await;
    assert_eq!((view.seq(), view.epoch()), (Seq(30), epoch));
}

/// After a failover, what moves the version without a write must not give it the value of a decision that was lost.
#[tokio::test]
async fn a_version_that_a_trim_or_a_plant_moves_is_none_that_was_lost() {
    let (store, (_stop, server)) = fresh_server().await;
    for by_plant in [false, true] {
        let (key, _) = created(&store).await;
        for _ in 0..9 {
            store.write(&key, one()).await.unwrap();
        }
        let all = read_all(&store, &key, Seq(0), suite::ALL).await;
        let (epoch, records) = folded(&store, &key, Seq(5), Limits::default()).await;
        assert_eq!(store.fold(&key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
        let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
        // As somebody knows it who has read a decision that this primary never had.
        let lost = Version { n: head.version.n + 1, ..head.version };
        if by_plant {
            let stub = Stub { expect: head.version, head: head.seq, object: "o", state: "", at: Millis(1) };
            assert_eq!(store.stub(&key, stub).await, Ok(Stubbed::Done));
        }
        server.command(&format!("HSET et:{{{key}}}:meta replid another")).await.unwrap();
        if by_plant {
            store.stage(&key, "a", &all).await.unwrap();
            let back = bare(Over::Stub { object: "o" }, &[], head.seq);
            let planted = store.plant(&key, "a", back).await.unwrap();
            assert!(matches!(planted, Planted::Done { epoch: new, .. } if new > epoch), "{planted:?}");
        } else {
            let trim = Trim { expect: head.version, from: Seq(1), floor: Seq(6), bytes: 1, base: "b" };
            assert_eq!(store.trim(&key, trim).await, Ok(Trimmed::Done));
        }
        let decided = Write { change: Some(change(Some(lost), "on what is lost")), ..one() };
        assert!(matches!(refused(&store, &key, decided).await, Refusal::Conflict { .. }), "{by_plant}");
        let now = store.load(&key).await.unwrap().unwrap();
        assert_eq!((now.version.n, now.head), (lost.n, head.seq));
        assert_eq!(now.epochs, [(epoch, Seq(1)), (now.version.epoch, head.seq.next())]);
        let written = store.write(&key, one()).await.unwrap();
        assert_eq!((written.epoch, written.to), (now.version.epoch, head.seq.next()), "it is begun once");
    }
}

#[tokio::test]
async fn a_full_server_can_be_folded_and_is_less_full_then() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    let mut writers = Writers::start(&store, &key).await;
    for _ in 0..2_000 {
        writers.token(&store, &key).await;
    }
    let memory = async || {
        let mut bytes = 0;
        for part in ["log", "folded"] {
            let answer =
                server.command(&format!("MEMORY USAGE et:{{{key}}}:{part} SAMPLES 0")).await.unwrap();
            bytes += answer.trim().trim_start_matches(':').parse().unwrap_or(0);
        }
        bytes
    };
    let before: u64 = memory().await;
    server.command("CONFIG SET maxmemory 1").await.unwrap();
    let (epoch, records) = folded(&store, &key, Seq(2_000), Limits::default()).await;
    assert_eq!(store.fold(&key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
    let after = memory().await;
    assert!(after * 4 < before, "{before} bytes before, {after} after");
}

#[tokio::test]
async fn a_folded_record_that_is_lost_is_reported_and_not_skipped() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    for _ in 0..30 {
        store.write(&key, one()).await.unwrap();
    }
    for to in [10, 20] {
        let (epoch, records) = folded(&store, &key, Seq(to), Limits::default()).await;
        assert_eq!(store.fold(&key, Fold { epoch, records: &records }).await, Ok(Folded::Done));
    }
    server.command(&format!("XDEL et:{{{key}}}:folded 10-0")).await.unwrap();
    assert!(matches!(store.read(&key, Seq(0), suite::ALL).await, Err(Error::Corrupt(_))));
    assert!(store.read(&key, Seq(10), suite::ALL).await.is_ok());
    server.command(&format!("DEL et:{{{key}}}:folded")).await.unwrap();
    assert!(matches!(store.read(&key, Seq(10), suite::ALL).await, Err(Error::Corrupt(_))));
    assert_eq!(read_all(&store, &key, Seq(20), suite::ALL).await.len(), 11);
}
