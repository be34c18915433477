//! How many connections each address has.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

/// Whom connections are counted for: an IPv4 address, or the /64 network of an
/// IPv6 address, within which one client can have any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Origin(IpAddr);

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            address @ IpAddr::V4(_) => address,
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
        })
    }

    /// An address that belongs to it.
    pub(crate) fn address(self) -> IpAddr {
        self.0
    }
}

/// Counts connections, if there is a limit.
#[derive(Debug)]
pub(crate) struct Addresses {
    max: Option<u32>,
    counts: HashMap<Origin, u32>,
}

impl Addresses {
    pub(crate) fn new(max: Option<u32>) -> Self {
        Self {
            max,
            counts: HashMap::new(),
        }
    }

    /// Changes the limit; `admitted` are the connections there are.
    pub(crate) fn set_max(&mut self, max: Option<u32>, admitted: impl Iterator<Item = Origin>) {
        *self = Self::new(max);
        admitted.for_each(|origin| self.count(origin));
    }

    /// Counts one more connection; false if that is too many.
    pub(crate) fn admit(&mut self, origin: Origin) -> bool {
        let Some(max) = self.max else {
            return true;
        };
        let count = self.counts.entry(origin).or_default();
        let has_room = *count < max;
        *count += u32::from(has_room);
        has_room
    }

    /// Counts a connection that was admitted elsewhere.
    pub(crate) fn count(&mut self, origin: Origin) {
        if self.max.is_some() {
            *self.counts.entry(origin).or_default() += 1;
        }
    }

    /// An admitted connection ended.
    pub(crate) fn release(&mut self, origin: Origin) {
        if let Some(count) = self.counts.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    #[test]
    fn each_address_has_its_own_limit_and_gets_room_back() {
        let mut addresses = Addresses::new(Some(2));
        let (one, other) = (origin("192.0.2.1"), origin("192.0.2.2"));
        assert!(addresses.admit(one));
        assert!(addresses.admit(one));
        assert!(!addresses.admit(one));
        assert!(addresses.admit(other));
        addresses.release(one);
        assert!(addresses.admit(one));
        for origin in [one, one, other] {
            addresses.release(origin);
        }
        assert!(addresses.counts.is_empty());
    }

    #[test]
    fn a_new_limit_counts_the_connections_there_are_and_cuts_none() {
        let mut addresses = Addresses::new(None);
        let one = origin("192.0.2.1");
        for _ in 0..3 {
            assert!(addresses.admit(one));
        }
        addresses.set_max(Some(2), [one; 3].into_iter());
        addresses.release(one);
        assert!(!addresses.admit(one));
        addresses.release(one);
        assert!(addresses.admit(one));
        addresses.set_max(None, [one; 2].into_iter());
        assert!(addresses.admit(one));
        addresses.release(one);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_itself() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("::ffff:192.0.2.1"), origin("::ffff:192.0.2.2"));
    }
}
