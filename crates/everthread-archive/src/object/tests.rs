//! Tests of the form of archived sessions.

use super::*;
use proptest::prelude::*;

fn head(floor: u64, last: u64) -> Head {
    Head {
        everthread: FORMAT,
        session: "acme/s".into(),
        at: Millis(1_700),
        epochs: vec![(Epoch(7), Seq(1)), (Epoch(9), Seq(11))],
        head: Seq(last),
        changes: 4,
        floor: Seq(floor),
        state: "{\"a\":\n1}".into(),
    }
}

fn record(from: u64, to: u64, text: &str) -> Record {
    let epoch = Epoch(if from < 11 { 7 } else { 9 });
    let blocks = format!(
        "[{{\"by\":{{\"kind\":\"user\",\"id\":\"ann\"}},\"at\":1,\"entries\":[{{\"type\":\"x-a\",\n\"v\":{}}}]}}]",
        serde_json::to_string(text).unwrap()
    );
    Record { epoch, from: Seq(from), to: Seq(to), blocks: blocks.into() }
}

fn written(head: &Head, base: Option<&str>, records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(head, base).unwrap();
    let mut out = Vec::new();
    for record in records {
        writer.push(record).unwrap();
        out.extend(writer.take());
    }
    out.extend(writer.finish().unwrap());
    out
}

fn read(bytes: &[u8], piece: usize) -> Result<Vec<Item>, Broken> {
    let mut reader = Reader::default();
    let mut out = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        reader.feed(piece)?;
        out.extend(std::iter::from_fn(|| reader.next_item()));
    }
    reader.finish()?;
    out.extend(std::iter::from_fn(|| reader.next_item()));
    Ok(out)
}

/// The lines of an object, changed and packed again.
fn repacked(bytes: &[u8], change: impl Fn(&mut Vec<String>)) -> Vec<u8> {
    let mut decoder = GzDecoder::new(Vec::new());
    decoder.write_all(bytes).unwrap();
    let text = String::from_utf8(decoder.finish().unwrap()).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for line in lines {
        writeln!(encoder, "{line}").unwrap();
    }
    encoder.finish().unwrap()
}

fn sample() -> Vec<u8> {
    written(&head(1, 12), None, &[record(1, 4, "é\n"), record(5, 10, "b"), record(11, 12, "c")])
}

#[test]
fn what_was_written_is_read_back_whatever_pieces_it_comes_in() {
    let records = [record(1, 4, "é\n"), record(5, 10, "b"), record(11, 12, "c")];
    let bytes = sample();
    for piece in [1, 7, 64, bytes.len()] {
        let items = read(&bytes, piece).unwrap();
        assert_eq!(items[0], Item::Head(Box::new(head(1, 12))));
        assert_eq!(items.len(), 4);
        for (item, record) in items[1..].iter().zip(&records) {
            let Item::Record(item) = item else { panic!("{item:?}") };
            // What stands between tokens may differ in kind, never in length: texts are as they were.
            let flat = String::from_utf8(record.blocks.to_vec()).unwrap().replace('\n', " ");
            assert_eq!((item.epoch, item.from, item.to), (record.epoch, record.from, record.to));
            assert_eq!(item.blocks, flat);
        }
    }
}

#[test]
fn a_session_whose_beginning_was_dropped_carries_its_base() {
    let items = read(&written(&head(11, 12), Some("{\"v\":1}"), &[record(11, 12, "c")]), 9).unwrap();
    assert_eq!(items[1], Item::Base("{\"v\":1}".into()));
    // All of it may have been dropped.
    assert_eq!(read(&written(&head(13, 12), Some("b"), &[]), 9).unwrap().len(), 2);
}

#[test]
fn old_records_may_be_of_epochs_that_the_table_has_forgotten() {
    let mut head = head(1, 12);
    head.epochs = vec![(Epoch(9), Seq(11))];
    assert!(read(&written(&head, None, &[record(1, 10, "a"), record(11, 12, "b")]), 64).is_ok());
    // But they never go back.
    let back = Record { epoch: Epoch(6), ..record(11, 12, "b") };
    assert!(read(&written(&head, None, &[record(1, 10, "a"), back]), 64).is_err());
    let later = Record { epoch: Epoch(10), ..record(11, 12, "b") };
    assert!(read(&written(&head, None, &[record(1, 10, "a"), later]), 64).is_err());
}

#[test]
fn an_object_that_ends_early_is_broken() {
    let bytes = sample();
    for end in 0..bytes.len() {
        assert!(read(&bytes[..end], 64).is_err(), "{end} of {}", bytes.len());
    }
}

#[test]
fn lines_that_are_missing_doubled_or_changed_are_found() {
    let bytes = sample();
    let broken =
        |change: &dyn Fn(&mut Vec<String>)| read(&repacked(&bytes, change), 64).unwrap_err().to_string();
    assert!(read(&repacked(&bytes, |_| {}), 64).is_ok());
    assert!(broken(&|lines| drop(lines.remove(2))).contains("follows"));
    assert!(broken(&|lines| lines.insert(2, lines[1].clone())).contains("follows"));
    assert!(broken(&|lines| drop(lines.remove(3))).contains("missing"));
    assert!(broken(&|lines| lines.truncate(4)).contains("no end"));
    assert!(broken(&|lines| lines.push(lines[3].clone())).contains("after its end"));
    assert!(broken(&|lines| lines[2] = lines[2].replace("\"b\"", "\"B\"")).contains("not what was written"));
    assert!(broken(&|lines| lines[0] = lines[0].replace("\"at\":1700", "\"at\":1701")).contains("not what"));
    assert!(broken(&|lines| lines[3] = lines[3].replace("\"9\"", "\"6\"")).contains("follows"));
    assert!(broken(&|lines| lines[1] = "{".into()).contains("line 2"));
    assert!(broken(&|lines| drop(lines.remove(0))).contains("line 1"));
}

#[test]
fn an_object_of_a_newer_form_says_so() {
    let newer = repacked(&sample(), |lines| lines[0] = r#"{"everthread":2,"other":true}"#.into());
    assert!(matches!(read(&newer, 64), Err(Broken::Newer(2))));
}

proptest! {
    #[test]
    fn any_records_survive(texts in prop::collection::vec(".{0,300}", 0..20), piece in 1usize..500) {
        let count = texts.len() as u64;
        let records: Vec<Record> = texts.iter().zip(1..).map(|(text, n)| record(n, n, text)).collect();
        let mut head = head(1, count);
        head.epochs = vec![(Epoch(7), Seq(1)), (Epoch(9), Seq(11))];
        let items = read(&written(&head, None, &records), piece).unwrap();
        prop_assert_eq!(items.len(), records.len() + 1);
    }

    #[test]
    fn a_damaged_object_is_never_taken_for_a_whole_one(at: prop::sample::Index, byte: u8) {
        let good = sample();
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // The time and the system that stand in the frame of gzip mean nothing.
        if let Ok(items) = read(&bytes, 64) {
            prop_assert_eq!(items, read(&good, 64).unwrap());
        }
    }
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let long = "x".repeat(LINE_BYTES_MAX);
    assert!(matches!(Writer::new(&head(9, 9), Some(&long)).err(), Some(Broken::Shape(_))));
    let fits = "x".repeat(LINE_BYTES_MAX - 100);
    let bytes = written(&head(10, 9), Some(&fits), &[]);
    assert!(read(&bytes, 1 << 20).is_ok());
}
