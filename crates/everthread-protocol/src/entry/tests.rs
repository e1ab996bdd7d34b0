//! Entries: who may write which, and what a reader makes of those it does not know.

use super::*;
use crate::scan;

fn check_one(text: &str, allowed: fn(Writer) -> bool) -> Result<Entry, Fault> {
    let text = format!("[{text}]");
    check(&scan::entries(text.as_bytes()).unwrap(), 0, allowed)
}

fn worker(writer: Writer) -> bool {
    writer != Writer::Decided
}

#[test]
fn a_worker_appends_its_own_types_and_no_others() {
    let append = r#"{"type":"part.append","message":"m","part":"p","offset":0,"text":"a"}"#;
    assert!(matches!(check_one(append, worker), Ok(Entry::PartAppend { .. })));
    assert_eq!(check_one(r#"{"type":"x-mine","any":1}"#, worker), Ok(Entry::Other));
    let ended = r#"{"type":"run.ended","run":"r","outcome":"completed"}"#;
    assert_eq!(check_one(ended, worker).unwrap_err().code, Code::EntryNotAllowed);
    assert_eq!(check_one(r#"{"type":"nope"}"#, worker).unwrap_err().code, Code::EntryNotAllowed);
    let more = r#"{"type":"run.step","phase":"start","color":1}"#;
    let fault = check_one(more, worker).unwrap_err();
    assert_eq!(fault.code, Code::BadRequest);
    assert!(fault.message.contains("\"color\""), "{fault}");
}

#[test]
fn names_of_events_and_types_of_ones_own_are_bounded() {
    let at = |bytes: usize| "n".repeat(bytes);
    let event = |name: String| check_one(&format!(r#"{{"type":"event","name":"{name}"}}"#), worker);
    let own = |name: String| check_one(&format!(r#"{{"type":"x-{name}"}}"#), worker);
    assert!(event(at(EVENT_NAME_BYTES_MAX)).is_ok() && own(at(EVENT_NAME_BYTES_MAX - 2)).is_ok());
    assert_eq!(event(at(EVENT_NAME_BYTES_MAX + 1)).unwrap_err().code, Code::TooLarge);
    assert_eq!(own(at(EVENT_NAME_BYTES_MAX - 1)).unwrap_err().code, Code::TooLarge);
}

#[test]
fn the_table_of_fields_agrees_with_the_types() {
    for (name, _, fields) in TYPES {
        let probe = format!(r#"{{"type":"{name}"}}"#);
        if let Err(e) = serde_json::from_str::<Entry>(&probe) {
            let missing = e.to_string();
            assert!(missing.contains("missing field"), "{name}: {missing}");
            let field = missing.split('`').nth(1).unwrap();
            assert!(fields.contains(&field), "{name} lacks {field} in the table");
        }
    }
}

#[test]
fn a_reader_keeps_what_it_does_not_know() {
    assert_eq!(Entry::read(r#"{"type":"later.thing","a":1}"#), Entry::Other);
    let more = r#"{"type":"run.step","phase":"start","later":1}"#;
    assert_eq!(Entry::read(more), Entry::RunStep { phase: Phase::Start, name: None });
    let put = r#"{"type":"message.put","message":"m","role":"user","parts":[{"kind":"text","value":"a","later":1}]}"#;
    assert!(matches!(Entry::read(put), Entry::MessagePut { .. }));
    let ended =
        r#"{"type":"run.ended","run":"r","outcome":"failed","error":{"code":"c","message":"m","later":1}}"#;
    assert!(matches!(Entry::read(ended), Entry::RunEnded { error: Some(_), .. }));
}

#[test]
fn a_field_inside_a_part_that_nobody_knows_is_refused_by_name() {
    let put = r#"{"type":"message.put","role":"user","parts":[{"kind":"text","value":"a","color":1}]}"#;
    let text = format!("[{put}]");
    let fault = check_message(&scan::entries(text.as_bytes()).unwrap(), 0).unwrap_err();
    assert_eq!(fault.code, Code::BadRequest);
    assert!(fault.message.contains("`color`"), "{fault}");
    let whole = put.replace("\"role\"", "\"message\":\"m\",\"role\"");
    assert_eq!(check_one(&whole, |_| true).unwrap_err().code, Code::BadRequest);
    let good = text.replace(",\"color\":1", "");
    let message = check_message(&scan::entries(good.as_bytes()).unwrap(), 0).unwrap();
    assert_eq!((message.message, message.parts.len()), (None, 1));
}

#[test]
fn a_token_is_read_the_short_way_only_if_it_is_exactly_as_we_write_it() {
    let block = |text: &str| {
        format!(r#"[{{"type":"part.append","message":"m","part":"p","offset":12,"text":"{text}"}}]"#)
    };
    for (text, bytes) in [(" word", 5), ("", 0), (r#"\n\"\\"#, 3), ("gr\u{fc}n", 5), ("}]", 2)] {
        let block = block(text);
        assert_eq!(token(block.as_bytes()), Some(Token { message: "m", part: "p", offset: 12, bytes }));
        let raw = scan::entries(block.as_bytes()).unwrap();
        let general = part_append(&raw, 0).unwrap();
        assert_eq!((&*general.message, &*general.part, general.offset), ("m", "p", 12));
        assert_eq!(general.text.len(), bytes, "{text}");
    }
    let plain = block("a");
    let two = plain.replace("}]", "},{\"type\":\"x-a\"}]");
    for odd in [
        block("\\u0061"),
        block("a\nb"),
        block("a\\"),
        plain.replace(",\"text\"", ",\"text\":\"b\",\"text\""),
        plain.replace("12", "012"),
        plain.replace("12", "1.0"),
        plain.replace("append", "set"),
        plain.replace("\"m\"", "\"\\u006d\""),
        plain.replace(':', ": "),
        plain.replace("}]", ",\"more\":1}]"),
        format!("{plain} "),
        two,
    ] {
        assert_eq!(token(odd.as_bytes()), None, "{odd}");
    }
    assert_eq!(token(&[plain.as_bytes(), &[0xff]].concat()), None);
    let mut broken = plain.into_bytes();
    let text = broken.len() - 4;
    broken[text] = 0xff;
    assert_eq!(token(&broken), None, "not UTF-8");
}
