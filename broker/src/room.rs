//! Queues that have been long and are not any more.

use std::collections::VecDeque;

/// Queues up to this capacity keep it.
const CAPACITY_KEPT: usize = 64;

/// Gives back the memory that a queue needed when it was four times as long.
/// Costs nothing on average, however often it is called.
pub(crate) fn give_back_room<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > CAPACITY_KEPT && queue.len() < queue.capacity() / 4 {
        queue.shrink_to((queue.len() * 2).max(CAPACITY_KEPT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_empties_gives_back_its_memory_and_keeps_its_order() {
        let mut queue: VecDeque<u32> = (0..10_000).collect();
        for expected in 0..10_000 {
            assert_eq!(queue.pop_front(), Some(expected));
            give_back_room(&mut queue);
            assert!(queue.capacity() <= (4 * queue.len() + 4).max(2 * CAPACITY_KEPT));
        }
    }

    #[test]
    fn a_short_queue_is_left_alone() {
        let mut queue: VecDeque<u32> = VecDeque::with_capacity(CAPACITY_KEPT);
        let capacity = queue.capacity();
        give_back_room(&mut queue);
        assert_eq!(queue.capacity(), capacity);
    }
}
