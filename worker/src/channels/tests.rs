use super::*;

fn key(index: u32) -> ConnectionKey {
    ConnectionKey { index, serial: 1 }
}

fn name(raw: &str) -> ChannelName {
    ChannelName::try_from(raw).unwrap()
}

fn at(generation: u64, offset: u64) -> Position {
    Position { generation, offset }
}

fn join(channels: &mut Channels, name: &ChannelName, key: ConnectionKey) -> Joined {
    channels.join(name, key, SlowClient::default)
}

fn arrive(
    channels: &mut Channels,
    name: &str,
    offset: u64,
    is_owner: impl FnOnce(ShardId) -> bool,
) -> Option<(Vec<ConnectionKey>, Arrival)> {
    let arrived = channels.arrive(name, offset, is_owner)?;
    Some((arrived.subscribers.to_vec(), arrived.arrival))
}

#[test]
fn only_the_first_subscriber_makes_the_worker_ask_and_only_the_last_ends_it() {
    let mut channels = Channels::default();
    let a = name("a");
    assert_eq!(join(&mut channels, &a, key(1)), Joined::First);
    assert_eq!(join(&mut channels, &a, key(2)), Joined::Waiting);
    assert_eq!(channels.request("a"), Some((1, None)));
    assert_eq!(
        channels.confirm("a", 1, at(7, 0), true),
        (vec![key(1), key(2)], false)
    );
    assert_eq!(channels.request("a"), None, "the owner has it");
    assert_eq!(join(&mut channels, &a, key(3)), Joined::Confirmed);
    assert_eq!(channels.subscriptions(), 3);
    assert!(!channels.leave("a", key(1)));
    assert!(!channels.leave("a", key(3)));
    assert!(channels.leave("a", key(2)));
    assert_eq!((channels.subscriptions(), channels.len()), (0, 0));
}

#[test]
fn a_publication_reaches_subscribers_once() {
    let mut channels = Channels::default();
    join(&mut channels, &name("a"), key(1));
    assert_eq!(
        arrive(&mut channels, "a", 1, |_| true),
        None,
        "not confirmed yet"
    );
    channels.request("a");
    channels.confirm("a", 1, at(7, 4), true);
    assert_eq!(
        arrive(&mut channels, "a", 5, |_| false),
        None,
        "not from its owner"
    );
    assert_eq!(
        arrive(&mut channels, "a", 4, |_| true),
        Some((vec![], Arrival::Repeated))
    );
    assert_eq!(
        arrive(&mut channels, "a", 5, |_| true),
        Some((vec![key(1)], Arrival::Next))
    );
    assert_eq!(
        arrive(&mut channels, "a", 5, |_| true),
        Some((vec![], Arrival::Repeated))
    );
    assert_eq!(
        arrive(&mut channels, "a", 7, |_| true),
        Some((vec![key(1)], Arrival::AfterHole))
    );
    assert_eq!(arrive(&mut channels, "b", 1, |_| true), None);
}

#[test]
fn after_a_lost_link_the_owner_is_asked_for_what_is_missing() {
    let mut channels = Channels::default();
    join(&mut channels, &name("a"), key(1));
    channels.request("a");
    channels.confirm("a", 1, at(7, 4), true);
    arrive(&mut channels, "a", 5, |_| true);
    assert_eq!(channels.unconfirm(|_| true), [name("a")]);
    assert_eq!(join(&mut channels, &name("a"), key(2)), Joined::Waiting);
    assert_eq!(channels.request("a"), Some((2, Some(at(7, 5)))));
    let (waited, has_hole) = channels.confirm("a", 2, at(7, 5), true);
    assert_eq!((waited, has_hole), (vec![key(2)], false));
    assert_eq!(
        arrive(&mut channels, "a", 6, |_| true),
        Some((vec![key(1), key(2)], Arrival::Next))
    );
}

#[test]
fn a_log_that_was_lost_is_a_hole_and_starts_anew() {
    let mut channels = Channels::default();
    join(&mut channels, &name("a"), key(1));
    channels.request("a");
    channels.confirm("a", 1, at(7, 100), true);
    channels.unconfirm(|_| true);
    channels.request("a");
    assert_eq!(channels.confirm("a", 2, at(8, 0), false), (vec![], true));
    assert_eq!(
        arrive(&mut channels, "a", 1, |_| true),
        Some((vec![key(1)], Arrival::Next))
    );
}

#[test]
fn a_repeated_leave_changes_nothing() {
    let mut channels = Channels::default();
    join(&mut channels, &name("a"), key(1));
    join(&mut channels, &name("a"), key(2));
    assert!(!channels.leave("a", key(1)));
    assert!(!channels.leave("a", key(1)));
    assert_eq!(channels.subscriptions(), 1);
}

#[test]
fn an_answer_to_an_earlier_request_confirms_nothing() {
    let mut channels = Channels::default();
    join(&mut channels, &name("a"), key(1));
    channels.request("a");
    // The last one leaves, another comes, before the first answer.
    assert!(channels.leave("a", key(1)));
    join(&mut channels, &name("a"), key(2));
    assert_eq!(channels.request("a"), Some((2, None)));
    assert_eq!(channels.confirm("a", 1, at(7, 3), true), (vec![], false));
    assert!(channels.refuse("a", 1).is_empty());
    assert_eq!(channels.confirm("a", 0, at(7, 3), false), (vec![], false));
    assert_eq!(arrive(&mut channels, "a", 4, |_| true), None);
    assert_eq!(
        channels.confirm("a", 2, at(7, 9), true),
        (vec![key(2)], false)
    );
}

#[test]
fn a_list_has_the_first_names_and_says_when_there_are_more() {
    let mut channels = Channels::default();
    for (index, raw) in ["b:3", "a:1", "b:1", "b:2", "c"].into_iter().enumerate() {
        let index = u32::try_from(index).unwrap();
        join(&mut channels, &name(raw), key(index));
    }
    join(&mut channels, &name("b:1"), key(9));
    assert_eq!(
        channels.list("b:", None, 2),
        (vec![("b:1", 2), ("b:2", 1)], true)
    );
    assert_eq!(
        channels.list("b:", Some("b:2"), 2),
        (vec![("b:3", 1)], false)
    );
    assert_eq!(channels.list("", Some("c"), 2), (vec![], false));
    let (all, cut) = channels.list("", None, 5);
    assert_eq!((all.len(), cut), (5, false));
    let members: Vec<_> = channels.members("b:1").collect();
    assert_eq!(members, [key(2), key(9)]);
    assert_eq!(channels.members("none").count(), 0);
}
