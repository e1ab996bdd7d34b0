//! The conformance suite: what every engine does, case by case.
//!
//! `conformance!(open)` makes one test of every case; `open` is an async function that gives a fresh store and whatever
//! must live as long as the test. A case may wait for a state, with a deadline, never for a time.

pub mod deleting;
pub mod feed;
pub mod folding;
pub mod indexes;
pub mod leases;
pub mod people;
pub mod planting;
pub mod reading;
pub mod rebuilding;
pub mod sureness;
pub mod tenant;
pub mod trimming;
pub mod writing;

use everthread_protocol::{Epoch, Record, RunId, Seq, SessionKey, Version};
use everthread_store::{Change, Error, Follower, Producer, Refusal, Store, Write, Written};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// One test per case, for the engine that `$open` gives.
macro_rules! conformance {
    ($open:path) => {
        $crate::suite::conformance!(@ $open, writing,
            a_session_is_created_once,
            a_write_to_no_session_is_refused,
            entries_get_dense_seqs,
            a_repeated_batch_gets_its_first_answer_before_any_other_check,
            acks_of_repeated_batches_are_cumulative,
            a_gap_names_the_batch_that_is_expected,
            a_higher_incarnation_starts_at_one_and_a_lower_is_fenced,
            a_writer_without_its_fence_is_refused,
            every_fence_is_greater_than_those_before_it,
            a_takeover_revokes_and_grants_in_one_write,
            a_conflict_names_the_version_that_is_current,
            a_decision_made_on_silence_is_refused_once_the_run_has_written,
            a_write_after_its_time_is_refused,
            checks_come_in_their_order,
            a_write_without_entries_changes_only_the_state,
            a_refused_write_changes_nothing,
            load_knows_fences_producers_and_time,
            two_hundred_writers_get_dense_seqs_and_lose_nothing,
            of_many_deciders_at_one_version_exactly_one_wins,
        );
        $crate::suite::conformance!(@ $open, sureness, every_write_is_accepted_and_more_is_had_or_refused);
        $crate::suite::conformance!(@ $open, rebuilding,
            every_session_is_found_by_a_scan_whatever_else_there_is,
            what_waits_in_a_pool_is_read_without_taking_it,
            one_node_at_a_time_builds_and_once_is_enough,
        );
        $crate::suite::conformance!(@ $open, reading,
            what_was_written_is_read_back_verbatim,
            pages_are_bounded_and_join_without_gap,
            a_page_may_begin_in_the_middle_of_a_record,
            reading_at_the_head_or_beyond_gives_nothing,
            a_page_tells_head_and_epochs,
            heads_come_in_the_order_asked,
            tenants_do_not_see_each_other,
        );
        $crate::suite::conformance!(@ $open, feed,
            a_follower_is_told_to_doubt_first,
            a_log_follower_gets_every_record_in_order,
            a_control_follower_hears_of_changes_and_not_of_appends,
            what_a_follower_is_given_can_be_read_back,
            a_dropped_follower_hears_nothing,
        );
        $crate::suite::conformance!(@ $open, tenant,
            a_tenants_followers_hear_of_its_sessions_and_of_no_others,
            a_deletion_wakes_followers_of_the_tenant,
        );
        $crate::suite::conformance!(@ $open, folding,
            from_every_cursor_a_folded_log_reads_the_same,
            a_fold_changes_nothing_but_the_seam,
            every_answer_tells_how_far_the_log_is_folded,
            a_fold_that_does_not_fit_is_refused_and_changes_nothing,
            of_many_folders_at_once_exactly_one_wins,
            a_log_can_be_folded_to_its_head_and_goes_on,
            pages_of_a_folded_log_are_bounded_and_join_at_the_seam,
            a_follower_that_heard_nothing_finds_what_was_folded_meanwhile,
            readers_appenders_and_folders_do_not_get_in_each_others_way,
        );
        $crate::suite::conformance!(@ $open, planting,
            what_was_staged_becomes_a_session_that_goes_on,
            a_planted_session_can_be_folded_and_acknowledged,
            a_plant_without_all_that_it_needs_makes_nothing,
            of_many_plants_at_once_exactly_one_wins,
            a_stub_refuses_what_needs_log_or_state,
            a_session_that_has_changed_is_not_made_a_stub,
            a_session_that_comes_back_is_as_it_was,
            a_floor_and_its_base_go_and_come_with_the_session,
            readers_of_a_session_that_goes_and_comes_find_it_whole,
            followers_hear_of_a_plant,
            a_session_that_was_deleted_can_be_planted_anew,
            a_deletion_since_the_planter_began_is_final,
            who_goes_on_with_a_staging_that_is_forgotten_learns_it_from_the_plant,
            a_stub_is_listed_and_deleted_like_a_session,
            a_session_of_which_nothing_is_left_but_its_end_can_be_planted,
        );
        $crate::suite::conformance!(@ $open, trimming,
            a_trim_drops_what_is_before_the_floor_and_keeps_the_base,
            heads_tell_how_many_bytes_are_folded,
            a_trim_that_does_not_fit_is_refused_and_changes_nothing,
            a_decision_and_a_trim_do_not_miss_each_other,
            nothing_is_left_of_a_base_when_its_session_is_deleted,
            of_many_trimmers_at_once_exactly_one_wins,
            readers_and_trimmers_do_not_get_in_each_others_way,
        );
        $crate::suite::conformance!(@ $open, leases,
            a_grant_sets_a_lease_from_the_time_of_the_write,
            a_lease_without_a_grant_is_ignored,
            a_renewal_moves_a_lease_forward_and_never_back,
            a_wrong_fence_renews_nothing,
            a_revoked_run_has_no_lease_and_gets_none,
            the_lease_of_the_next_holder_is_left_alone,
            a_refused_or_repeated_grant_leaves_leases_alone,
            heads_of_renewals_come_in_the_order_asked,
            hundreds_of_sessions_are_renewed_in_one_call,
            who_has_got_a_control_is_read_back,
            a_delivery_wakes_control_followers_only_and_can_then_be_read,
            of_too_many_deliveries_the_latest_are_known,
        );
        $crate::suite::conformance!(@ $open, people,
            a_device_goes_forward_and_never_back,
            a_cursor_that_the_log_has_not_is_not_taken,
            devices_of_a_session_are_told_apart_and_forgotten_one_by_one,
            one_device_is_found_in_many_sessions,
            of_many_acknowledgements_at_once_the_furthest_stands,
            of_too_many_devices_the_one_idle_for_longest_is_forgotten,
            a_member_is_present_while_its_node_lives_and_holds_it,
            what_is_told_of_a_member_changes_and_its_beginning_stays,
            the_same_member_may_be_held_by_two_nodes,
            of_too_many_members_nothing_is_told_but_who_they_are,
            a_node_that_missed_its_beat_learns_it,
            a_presence_follower_hears_of_members_and_of_nothing_else,
        );
        $crate::suite::conformance!(@ $open, deleting,
            nothing_is_left_of_a_deleted_session,
            deleting_nothing_or_twice_is_harmless,
            a_session_that_went_on_is_not_deleted_for_what_it_was,
            a_session_made_anew_has_greater_numbers_and_nothing_of_before,
            followers_of_every_interest_are_told_to_look,
            a_deadline_of_a_deleted_session_fires_at_once,
            a_stub_is_listed_and_deleted_like_any_session,
            states_come_in_the_order_asked,
            a_session_leaves_the_list_unless_it_was_active_since,
            deleting_while_others_write_fold_and_read,
        );
        $crate::suite::conformance!(@ $open, indexes,
            an_item_is_taken_once_and_finished_once,
            an_item_that_is_not_finished_comes_back,
            pools_are_apart,
            a_watcher_is_woken_until_its_guard_is_dropped,
            arming_keeps_the_earliest_time,
            a_claimed_deadline_is_hidden_and_then_finished,
            a_finish_after_a_new_arm_is_without_effect,
            arming_a_claimed_session_for_later_is_not_lost,
            a_claim_that_is_not_finished_comes_back,
            a_worker_lives_while_it_beats,
            a_worker_is_buried_by_its_holder_only,
            sessions_are_listed_latest_first_in_pages,
            the_index_never_moves_back,
            a_store_that_works_is_ready,
        );
    };
    (@ $open:path, $module:ident, $($case:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (store, _kept) = $open().await;
                $crate::suite::$module::$case(&store).await;
            }
        )+
    };
}
pub(crate) use conformance;

/// How long a state is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// An author.
pub const BY: &str = r#"{"kind":"system","id":"suite"}"#;
/// More than any page here.
pub const ALL: usize = 1 << 20;

/// A session that no other test has.
pub fn fresh() -> SessionKey {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("acme/s{}-{n}", std::process::id()).parse().unwrap()
}

/// A run.
pub fn run(name: &str) -> RunId {
    name.parse().unwrap()
}

/// `count` entries that carry `tag` and their place.
pub fn entries(tag: &str, count: u32) -> String {
    let all: Vec<String> =
        (0..count).map(|i| format!(r#"{{"type":"x-test","tag":"{tag}","i" : {i}}}"#)).collect();
    format!("[{}]", all.join(","))
}

/// A write of `count` entries and nothing else.
pub fn append(entries: &str, count: u32) -> Write<'_> {
    Write { by: BY, run: None, entries, count, producer: None, fence: None, change: None, not_after: None }
}

/// One entry and nothing else.
pub fn one() -> Write<'static> {
    append(r#"[{"type":"x-one"}]"#, 1)
}

/// A change of the state.
pub fn change(expect: Option<Version>, state: &str) -> Change<'_> {
    Change { expect, state, next_due: None, grant: None, lease_ms: 0, revoke: &[], unwritten: None }
}

/// A numbered write.
pub fn producer(key: &str, incarnation: u64, batch: u64) -> Option<Producer<'_>> {
    Some(Producer { key, incarnation, batch, answer: "" })
}

/// A session with one entry.
pub async fn created<S: Store>(store: &S) -> (SessionKey, Written) {
    let key = fresh();
    let write = Write { change: Some(change(None, "s0")), ..one() };
    let written = store.write(&key, write).await.unwrap();
    assert_eq!(written.to, Seq(1));
    (key, written)
}

/// A session in which `r1` has a fence.
pub async fn granted<S: Store>(store: &S) -> (SessionKey, Written) {
    let (key, first) = created(store).await;
    let grant = Change { grant: Some(&run("r1")), ..change(Some(first.version), "s1") };
    let written = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    assert!(written.fence.is_some());
    (key, written)
}

/// The refusal of a write that must be refused.
pub async fn refused<S: Store>(store: &S, key: &SessionKey, write: Write<'_>) -> Refusal {
    match store.write(key, write).await {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Every record after `after`, page by page, checked to be contiguous.
pub async fn read_all<S: Store>(store: &S, key: &SessionKey, after: Seq, bytes_max: usize) -> Vec<Record> {
    let (mut records, mut after) = (Vec::<Record>::new(), after);
    loop {
        let page = store.read(key, after, bytes_max).await.unwrap();
        let Some(last) = page.records.last() else {
            assert!(after >= page.head.seq, "a page before the head is empty");
            return records;
        };
        after = last.to;
        for record in page.records {
            if let Some(before) = records.last() {
                assert_eq!(record.from, before.to.next(), "records are contiguous");
            }
            records.push(record);
        }
    }
}

/// The entries of records, as JSON.
pub fn texts(records: &[Record]) -> Vec<serde_json::Value> {
    let mut all = Vec::new();
    for record in records {
        for block in record.parse_blocks().unwrap() {
            all.extend(serde_json::from_str::<Vec<serde_json::Value>>(block.entries.get()).unwrap());
        }
    }
    all
}

/// What a follower hears.
#[derive(Debug)]
pub enum Heard {
    Record(Record),
    Changed,
    Doubt,
}

/// Writes down what it hears.
pub struct Ear(mpsc::Sender<Heard>);

/// An ear and what it hears.
pub fn ear() -> (std::sync::Arc<Ear>, mpsc::Receiver<Heard>) {
    let (tx, rx) = mpsc::channel(4096);
    (std::sync::Arc::new(Ear(tx)), rx)
}

impl Ear {
    fn hear(&self, heard: Heard) {
        // A receiver that is gone or full has stopped listening.
        drop(self.0.try_send(heard));
    }
}

impl Follower for Ear {
    fn record(&self, record: Record) {
        self.hear(Heard::Record(record));
    }

    fn changed(&self) {
        self.hear(Heard::Changed);
    }

    fn doubt(&self) {
        self.hear(Heard::Doubt);
    }
}

/// The next thing heard that is no doubt.
pub async fn next(rx: &mut mpsc::Receiver<Heard>) -> Heard {
    loop {
        match tokio::time::timeout(PATIENCE, rx.recv()).await.expect("nothing was heard").unwrap() {
            Heard::Doubt => {}
            heard => return heard,
        }
    }
}

/// Waits for the doubt that says the subscription stands.
pub async fn doubt(rx: &mut mpsc::Receiver<Heard>) {
    let heard = tokio::time::timeout(PATIENCE, rx.recv()).await.expect("no doubt").unwrap();
    assert!(matches!(heard, Heard::Doubt), "{heard:?}");
}

/// Waits until `probe` gives something.
pub async fn until<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.expect("the state never came")
}

/// A version that no session has.
pub fn stale() -> Option<Version> {
    Some(Version { epoch: Epoch(1), n: 1 })
}
