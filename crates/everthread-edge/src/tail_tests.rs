//! Rings and what cursors find in them.

use super::*;
use everthread_store::{Head, Page};

fn record(epoch: u64, from: u64, to: u64) -> Record {
    Record { epoch: Epoch(epoch), from: Seq(from), to: Seq(to), blocks: Bytes::from_static(b"[]") }
}

fn page(records: Vec<Record>, epochs: &[(u64, u64)], head: u64) -> Page {
    let epochs: Vec<_> = epochs.iter().map(|(e, s)| (Epoch(*e), Seq(*s))).collect();
    let (epoch, since) = *epochs.last().unwrap();
    let version = everthread_protocol::Version { epoch, n: 0 };
    Page {
        records,
        head: Head {
            epoch,
            since,
            seq: Seq(head),
            version,
            active: 0,
            folded_to: Seq(0),
            floor: Seq(1),
            folded_bytes: 0,
            archived: false,
        },
        epochs,
    }
}

fn at(epoch: u64, seq: u64) -> Cursor {
    Cursor { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn ring_at(head: u64) -> Ring {
    let mut ring = Ring::new();
    ring.learn(&page(vec![], &[(1, 1)], head), None);
    ring
}

#[test]
fn a_record_that_does_not_follow_is_not_taken() {
    let mut ring = ring_at(3);
    assert!(!ring.push(&record(1, 5, 5)));
    assert_eq!(ring.head, at(1, 3));
    assert!(ring.push(&record(1, 2, 3)), "a duplicate is no gap");
    assert!(ring.push(&record(1, 3, 4)), "an overlap is no gap");
    assert_eq!(ring.head, at(1, 4));
}

#[test]
fn a_cursor_on_the_ring_gets_frames_and_off_it_is_sent_to_the_log() {
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 4));
    ring.push(&record(1, 5, 6));
    assert!(matches!(ring.after(at(1, 2), 1000), Found::Behind(4)));
    let Found::Frames(frames) = ring.after(at(1, 3), 1000) else { panic!() };
    assert_eq!((frames.len(), frames.to), (2, at(1, 6)));
    let Found::Frames(frames) = ring.after(at(1, 5), 1) else { panic!() };
    assert_eq!((frames.len(), frames.to), (1, at(1, 6)), "a cursor inside a block gets the block");
    assert!(matches!(ring.after(at(1, 6), 1000), Found::Nothing(_)));
    assert!(matches!(ring.after(at(1, 7), 1000), Found::Ahead), "a page may bring more than the feed so far");
    assert!(matches!(ring.after(at(2, 1), 1000), Found::Ahead));
    assert!(matches!(ring.after(at(0, 1), 1000), Found::Invalid));
}

#[test]
fn a_new_epoch_leaves_cursors_before_it_alone_and_resets_those_beyond() {
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 9));
    // The log lost 6..9 and went on.
    ring.learn(&page(vec![record(2, 6, 6)], &[(1, 1), (2, 6)], 6), None);
    assert!(matches!(ring.after(at(1, 9), 1000), Found::Invalid));
    assert!(matches!(ring.after(at(1, 6), 1000), Found::Invalid));
    assert!(matches!(ring.after(at(1, 5), 1000), Found::Behind(1)));
    assert!(matches!(ring.after(at(2, 6), 1000), Found::Nothing(_)));
}

#[test]
fn an_epoch_that_follows_is_read_before_it_goes_on() {
    let mut ring = ring_at(3);
    assert!(!ring.push(&record(2, 4, 4)), "it may follow by its number only");
    ring.learn(&page(vec![record(2, 4, 4)], &[(1, 1), (2, 4)], 4), None);
    let Found::Frames(frames) = ring.after(at(1, 3), 1000) else { panic!() };
    assert_eq!(frames.to, at(2, 4));
    assert!(std::str::from_utf8(frames.iter().next().unwrap()).unwrap().contains("\"since\":4"));
    assert!(matches!(ring.after(at(1, 4), 1000), Found::Invalid));
}

#[test]
fn the_ring_is_bounded_by_bytes() {
    let mut ring = ring_at(0);
    let blocks = Bytes::from(vec![b' '; 10_000]);
    for seq in 1..100 {
        ring.push(&Record { blocks: blocks.clone(), ..record(1, seq, seq) });
    }
    assert!(ring.bytes <= RING_BYTES_MAX);
    assert!(matches!(ring.after(at(1, 1), 1000), Found::Behind(98)));
    assert!(matches!(ring.after(at(1, 80), 1000), Found::Behind(19)), "too far behind for raw frames");
    assert!(matches!(ring.after(at(1, 97), 1000), Found::Frames(..)));
}

#[test]
fn a_page_that_the_feed_has_overtaken_does_not_turn_the_ring_back() {
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 4));
    ring.push(&record(1, 5, 5));
    ring.learn(&page(vec![record(1, 4, 4)], &[(1, 1)], 4), None);
    assert_eq!(ring.head, at(1, 5));
    assert!(matches!(ring.after(at(1, 5), 1000), Found::Nothing(_)));
    assert!(matches!(ring.after(at(1, 3), 1000), Found::Frames(..)));
}

#[test]
fn a_page_that_was_read_before_the_feed_brought_more_takes_nothing_back() {
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 4));
    ring.learn(&page(vec![record(1, 3, 3)], &[(1, 1)], 3), None);
    assert_eq!(ring.head, at(1, 4));
    assert!(matches!(ring.after(at(1, 4), 1000), Found::Nothing(_)));
    // The same across the beginning of an epoch.
    ring.learn(&page(vec![record(2, 5, 5)], &[(1, 1), (2, 5)], 5), None);
    ring.learn(&page(vec![], &[(1, 1)], 4), None);
    assert!(matches!(ring.after(at(2, 5), 1000), Found::Nothing(_)));
}

#[test]
fn a_log_that_was_cut_short_and_that_nobody_has_written_since_is_believed_if_it_was_asked_after_that() {
    let shorter = || page(vec![], &[(1, 1)], 4);
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 9));
    ring.learn(&shorter(), Some(at(1, 9)));
    assert_eq!(ring.head, at(1, 4));
    assert!(matches!(ring.after(at(1, 4), 1000), Found::Nothing(_)));
    assert!(matches!(ring.after(at(1, 9), 1000), Found::Ahead), "whoever stands there asks the log");
    // A read that was begun before the last record came tells nothing about it.
    ring.push(&record(1, 5, 9));
    ring.learn(&shorter(), Some(at(1, 4)));
    assert_eq!(ring.head, at(1, 9));
    // Nor does a server that knows nothing of the incarnation that has begun elsewhere.
    ring.learn(&page(vec![record(2, 10, 10)], &[(1, 1), (2, 10)], 10), None);
    ring.learn(&shorter(), Some(at(2, 10)));
    assert_eq!(ring.head, at(2, 10));
}

#[test]
fn a_log_that_was_begun_anew_is_not_this_one() {
    let mut ring = ring_at(5);
    assert!(!ring.push(&record(2, 1, 1)));
    assert!(!ring.push(&record(2, 6, 6)), "nor when its numbers would fit");
    ring.learn(&page(vec![record(2, 6, 6)], &[(2, 1)], 6), None);
    assert!(matches!(ring.after(at(1, 5), 1000), Found::Gone));
    assert!(matches!(ring.after(at(2, 6), 1000), Found::Gone), "the new one has a tail of its own");
    assert!(ring.push(&record(2, 7, 7)), "and nothing is asked for this one any more");

    // A page that was read before it was begun teaches its tail nothing.
    let mut ring = Ring::new();
    ring.learn(&page(vec![], &[(2, 1)], 2), None);
    ring.learn(&page(vec![record(1, 3, 3)], &[(1, 1)], 3), None);
    assert!(matches!(ring.after(at(2, 2), 1000), Found::Nothing(_)));
}

#[test]
fn a_ring_that_has_moved_since_is_not_ended() {
    let mut ring = ring_at(3);
    ring.push(&record(1, 4, 4));
    assert!(!ring.end(at(1, 3)));
    assert!(ring.end(at(1, 4)));
    assert!(!Ring::new().end(Ring::new().head), "what nobody has opened has no end");
}

#[test]
fn a_block_as_large_as_allowed_is_not_a_lag() {
    let mut ring = ring_at(0);
    let blocks = Bytes::from(vec![b' '; everthread_protocol::limits::BLOCK_BYTES_MAX]);
    for seq in 1..4 {
        ring.push(&Record { blocks: blocks.clone(), ..record(1, seq, seq) });
    }
    assert!(matches!(ring.after(at(1, 2), 1000), Found::Frames(..)));
    assert!(matches!(ring.after(at(1, 1), 1000), Found::Behind(2)));
}
