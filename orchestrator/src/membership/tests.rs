use super::*;

const NOW: Millis = Millis(1_000);

fn broker(slot: u32, incarnation: u64) -> Joined {
    Joined {
        id: broker_id(slot),
        incarnation,
        address: format!("unix:/run/broker-{slot}.sock"),
        epoch: 0,
    }
}

fn broker_id(slot: u32) -> NodeId {
    NodeId {
        role: Role::Broker,
        slot,
    }
}

fn worker(slot: u32) -> Joined {
    Joined {
        id: NodeId {
            role: Role::Worker,
            slot,
        },
        incarnation: 1,
        address: String::new(),
        epoch: 0,
    }
}

/// Two brokers whose first view is published.
fn published() -> Membership {
    let mut membership = Membership::new(2);
    let _ = membership.joined(NOW, &broker(1, 1));
    let _ = membership.joined(NOW, &broker(2, 1));
    let _ = membership.applied(broker_id(1), 1);
    let _ = membership.applied(broker_id(2), 1);
    assert!(membership.is_published());
    membership
}

#[test]
fn the_first_view_waits_for_every_broker() {
    let mut membership = Membership::new(2);
    assert_eq!(membership.joined(NOW, &worker(1)), []);
    assert_eq!(membership.joined(NOW, &broker(2, 1)), []);
    assert_eq!(membership.view().epoch(), 0);
    let told = membership.joined(NOW, &broker(1, 1));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().epoch(), 1);
    assert_eq!(membership.view().brokers().len(), 2);
}

#[test]
fn workers_are_told_once_every_broker_has_applied() {
    let mut membership = Membership::new(2);
    let _ = membership.joined(NOW, &broker(1, 1));
    let _ = membership.joined(NOW, &broker(2, 1));
    assert_eq!(membership.applied(broker_id(1), 1), []);
    // A worker that comes meanwhile waits as well.
    assert_eq!(membership.joined(NOW, &worker(1)), []);
    let told = membership.applied(broker_id(2), 1);
    assert_eq!(told, [Tell::All(Role::Worker)]);
    assert_eq!(membership.applied(broker_id(2), 1), []);
}

#[test]
fn a_broker_that_does_not_apply_holds_the_workers_up_for_a_bounded_time() {
    let mut membership = Membership::new(1);
    let _ = membership.joined(NOW, &broker(1, 1));
    let until = membership.wake_at().unwrap();
    assert_eq!(until, NOW + APPLY_TIMEOUT);
    assert_eq!(membership.time(NOW), []);
    assert_eq!(membership.time(until), [Tell::All(Role::Worker)]);
    assert_eq!(membership.wake_at(), None);
}

#[test]
fn a_broker_that_leaves_holds_nobody_up_and_keeps_its_shards() {
    let mut membership = Membership::new(2);
    let _ = membership.joined(NOW, &broker(1, 1));
    let _ = membership.joined(NOW, &broker(2, 1));
    let _ = membership.applied(broker_id(1), 1);
    let told = membership.left(broker_id(2));
    assert_eq!(told, [Tell::All(Role::Worker)]);
    assert_eq!(membership.view().brokers().len(), 2);
}

#[test]
fn another_life_of_a_broker_is_another_view_with_the_same_owners() {
    let mut membership = published();
    let before = membership.view().clone();
    assert_eq!(membership.left(broker_id(1)), []);
    assert_eq!(membership.view(), &before, "being away changes nothing");
    let told = membership.joined(NOW, &broker(1, 2));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    let after = membership.view();
    assert_eq!(after.epoch(), 2);
    for shard in muster_proto::ShardId::all() {
        let (old, new) = (before.owner(shard).unwrap(), after.owner(shard).unwrap());
        assert_eq!(old.slot, new.slot);
        let reopened = after.shard_epoch(shard) == 2;
        assert_eq!(reopened, new.slot == 1);
    }
}

#[test]
fn the_same_life_that_joins_again_is_told_the_view_and_changes_nothing() {
    let mut membership = published();
    let _ = membership.left(broker_id(1));
    let mut again = broker(1, 1);
    again.epoch = 1;
    let told = membership.joined(NOW, &again);
    assert_eq!(told, [Tell::One(broker_id(1))]);
    assert_eq!(membership.view().epoch(), 1);
}

#[test]
fn a_worker_that_joins_later_is_told_the_view() {
    let mut membership = published();
    let joined = worker(3);
    let id = joined.id;
    assert_eq!(membership.joined(NOW, &joined), [Tell::One(id)]);
}

#[test]
fn a_node_that_has_seen_a_later_view_makes_the_next_one_later_still() {
    let mut membership = published();
    let mut ahead = worker(1);
    ahead.epoch = 40;
    let told = membership.joined(NOW, &ahead);
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().epoch(), 41);
}

#[test]
fn an_earlier_orchestrators_view_stays_while_its_brokers_are_the_same() {
    let view = published().view().clone();
    let mut membership = Membership::new(2);
    membership.resume(view.clone(), |_| true);
    for node in [broker(2, 1), worker(1), broker(1, 1)] {
        let again = Joined { epoch: 1, ..node };
        let told = membership.joined(NOW, &again);
        assert_eq!(told, [Tell::One(again.id)]);
    }
    assert_eq!(membership.view(), &view);
}

#[test]
fn a_broker_that_died_with_the_orchestrator_is_replaced_in_its_view() {
    let before = published().view().clone();
    let mut membership = Membership::new(2);
    membership.resume(before.clone(), |_| true);
    let _ = membership.joined(NOW, &broker(1, 1));
    let told = membership.joined(NOW, &broker(2, 2));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    let after = membership.view();
    assert_eq!(after.epoch(), 2);
    for shard in muster_proto::ShardId::all() {
        let is_kept = after.shard_epoch(shard) == before.shard_epoch(shard);
        assert_eq!(is_kept, after.owner(shard).unwrap().slot == 1);
    }
}

#[test]
fn a_broker_that_the_cluster_no_longer_has_leaves_the_view() {
    let mut membership = Membership::new(1);
    membership.resume(published().view().clone(), |slot| slot == 1);
    let told = membership.joined(NOW, &broker(1, 1));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().brokers().len(), 1);
    assert!(membership.view().epoch() > 1);
}

#[test]
fn an_answer_to_an_earlier_view_does_not_count() {
    let mut membership = published();
    let _ = membership.joined(NOW, &broker(1, 2));
    assert_eq!(membership.applied(broker_id(1), 1), []);
    assert_eq!(membership.applied(broker_id(2), 2), []);
    let told = membership.applied(broker_id(1), 2);
    assert_eq!(told, [Tell::All(Role::Worker)]);
}

#[test]
fn two_brokers_that_restart_one_after_the_other_need_one_publication_to_workers() {
    let mut membership = published();
    let _ = membership.left(broker_id(1));
    let _ = membership.left(broker_id(2));
    let _ = membership.joined(NOW, &broker(1, 2));
    let _ = membership.joined(NOW, &broker(2, 2));
    assert_eq!(membership.applied(broker_id(1), 2), []);
    assert_eq!(membership.applied(broker_id(1), 3), []);
    let told = membership.applied(broker_id(2), 3);
    assert_eq!(told, [Tell::All(Role::Worker)]);
}

fn owned(membership: &Membership, slot: u32) -> usize {
    let view = membership.view();
    muster_proto::ShardId::all()
        .filter(|shard| view.owner(*shard).unwrap().slot == slot)
        .count()
}

#[test]
fn the_shards_of_a_broker_that_is_set_aside_move_to_the_others_until_it_is_back() {
    let mut membership = published();
    let before = membership.view().clone();
    assert_eq!(membership.left(broker_id(1)), []);
    let told = membership.set_aside(NOW, BTreeSet::from([1]));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().epoch(), 2);
    assert_eq!(owned(&membership, 2), muster_proto::SHARDS);
    let told = membership.applied(broker_id(2), 2);
    assert_eq!(told, [Tell::All(Role::Worker)]);
    for shard in muster_proto::ShardId::all() {
        let moved = before.owner(shard).unwrap().slot == 1;
        let epoch = membership.view().shard_epoch(shard);
        assert_eq!(epoch, if moved { 2 } else { 1 }, "only what moved reopens");
    }
    // It is told the view, so that it can become ready, and owns nothing.
    let told = membership.joined(NOW, &broker(1, 5));
    assert_eq!(told, [Tell::One(broker_id(1))]);
    assert_eq!(membership.view().epoch(), 2);
    assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);

    let told = membership.set_aside(NOW, BTreeSet::new());
    assert_eq!(told, [Tell::All(Role::Broker)]);
    let after = membership.view();
    assert_eq!(after.epoch(), 3);
    for shard in muster_proto::ShardId::all() {
        let (old, new) = (before.owner(shard).unwrap(), after.owner(shard).unwrap());
        assert_eq!(old.slot, new.slot, "each broker has its shards back");
    }
    assert_eq!(membership.applied(broker_id(2), 3), [], "1 is missing");
    let told = membership.applied(broker_id(1), 3);
    assert_eq!(told, [Tell::All(Role::Worker)]);
}

#[test]
fn the_last_broker_never_loses_its_shards() {
    let mut membership = Membership::new(1);
    let _ = membership.joined(NOW, &broker(1, 1));
    let _ = membership.applied(broker_id(1), 1);
    assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);
    assert_eq!(owned(&membership, 1), muster_proto::SHARDS);
    let told = membership.joined(NOW, &broker(1, 2));
    assert_eq!(told, [Tell::All(Role::Broker)], "it is back in place");

    let mut membership = published();
    let _ = membership.set_aside(NOW, BTreeSet::from([1]));
    assert_eq!(membership.set_aside(NOW, BTreeSet::from([1, 2])), []);
    assert_eq!(owned(&membership, 2), muster_proto::SHARDS);
    // The first that is fine again gets them.
    let told = membership.set_aside(NOW, BTreeSet::from([2]));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(owned(&membership, 1), muster_proto::SHARDS);
}

#[test]
fn brokers_that_are_set_aside_at_the_same_time_leave_the_shards_where_they_are() {
    let mut membership = published();
    let before = membership.view().clone();
    assert_eq!(membership.set_aside(NOW, BTreeSet::from([1, 2])), []);
    assert_eq!(membership.view(), &before);
}

#[test]
fn nobody_is_set_aside_before_the_first_view() {
    let mut membership = Membership::new(2);
    let _ = membership.joined(NOW, &broker(1, 1));
    assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);
    assert_eq!(membership.view().epoch(), 0);
}

/// Two brokers, and a third that is expected and has joined.
fn growing() -> Membership {
    let mut membership = published();
    membership.expect(BTreeSet::from([3]));
    let told = membership.joined(NOW, &broker(3, 1));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    membership
}

#[test]
fn a_broker_that_is_added_is_linked_to_before_it_owns_anything() {
    let mut membership = growing();
    assert_eq!(membership.view().brokers().len(), 3);
    assert_eq!(owned(&membership, 3), 0);
    for shard in muster_proto::ShardId::all() {
        assert_eq!(membership.view().shard_epoch(shard), 1, "nothing moves");
    }
    for slot in 1..=3 {
        assert!(!membership.is_applied());
        let _ = membership.applied(broker_id(slot), 2);
    }
    assert!(membership.is_applied() && membership.is_published());

    assert_eq!(membership.admit(NOW), [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().epoch(), 3);
    for slot in 1..=3 {
        assert!((80..=93).contains(&owned(&membership, slot)), "{slot}");
    }
    for shard in muster_proto::ShardId::all() {
        let moved = membership.view().owner(shard).unwrap().slot == 3;
        let epoch = membership.view().shard_epoch(shard);
        // Bounded load may move a few shards between the others.
        assert!(!moved || epoch == 3, "what moves is opened anew");
    }
}

#[test]
fn an_added_broker_in_a_crash_loop_leaves_the_view() {
    let mut membership = growing();
    let told = membership.set_aside(NOW, BTreeSet::from([3]));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().brokers().len(), 2);
}

#[test]
fn a_broker_that_is_to_go_loses_its_shards_and_is_heard_until_it_has_ended() {
    let mut membership = published();
    let told = membership.dismiss(NOW, BTreeSet::from([2]));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    assert_eq!(membership.view().brokers().len(), 1);
    assert_eq!(owned(&membership, 1), muster_proto::SHARDS);
    assert_eq!(membership.applied(broker_id(1), 2), [], "2 has not closed");
    assert!(!membership.is_applied());
    let told = membership.applied(broker_id(2), 2);
    assert_eq!(told, [Tell::All(Role::Worker)]);
    assert!(membership.is_applied());

    // Its stream breaks and is back: still nothing moves.
    let _ = membership.left(broker_id(2));
    let again = Joined {
        epoch: 2,
        ..broker(2, 1)
    };
    let told = membership.joined(NOW, &again);
    assert_eq!(told, [Tell::One(broker_id(2))]);
    assert!(!membership.is_applied(), "it has not said so again");
    membership.forget(2);
    assert!(membership.is_applied());
    assert_eq!(membership.view().epoch(), 2);
}

#[test]
fn a_broker_in_a_crash_loop_gets_nothing_when_another_goes() {
    let mut membership = growing();
    let _ = membership.admit(NOW);
    let _ = membership.set_aside(NOW, BTreeSet::from([1]));
    let _ = membership.dismiss(NOW, BTreeSet::from([3]));
    assert_eq!(owned(&membership, 2), muster_proto::SHARDS);
    let _ = membership.set_aside(NOW, BTreeSet::new());
    assert!(owned(&membership, 1) > 0);
    assert_eq!(owned(&membership, 3), 0);
}

#[test]
fn a_scale_that_was_interrupted_is_finished_with_the_earlier_view() {
    let mut before = growing();
    let _ = before.admit(NOW);
    // Broker 3 was to go, and the view was not yet told.
    let mut membership = Membership::new(2);
    membership.resume(before.view().clone(), |slot| slot <= 2);
    let told = membership.dismiss(NOW, BTreeSet::from([3]));
    assert_eq!(told, [Tell::All(Role::Broker)]);
    let _ = membership.joined(NOW, &broker(3, 1));
    assert_eq!(owned(&membership, 3), 0);

    // Broker 3 was added, and not yet admitted.
    let mut membership = Membership::new(3);
    membership.resume(growing().view().clone(), |slot| slot <= 3);
    membership.expect(BTreeSet::from([3]));
    for slot in [3, 1, 2] {
        let again = Joined {
            epoch: 2,
            ..broker(slot, 1)
        };
        let told = membership.joined(NOW, &again);
        assert_eq!(told, [Tell::One(broker_id(slot))]);
    }
    assert_eq!(owned(&membership, 3), 0);
    assert_eq!(membership.admit(NOW), [Tell::All(Role::Broker)]);
    assert!(owned(&membership, 3) > 0);
}
