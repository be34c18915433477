//! Which node is meant.

use std::fmt;

use muster_proto::control as pb;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Worker,
    Broker,
    /// A worker beside the one in its slot, which it succeeds.
    Successor,
}

/// A place in the cluster that one process at a time fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId {
    pub(crate) role: Role,
    /// 1, 2, 3 … within the role.
    pub(crate) slot: u32,
}

impl Role {
    /// The verb that makes this binary play the role.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Worker | Self::Successor => "worker",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Broker => "broker",
            Self::Successor => "successor",
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.slot)
    }
}

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker | Role::Successor => Self::Worker,
            Role::Broker => Self::Broker,
        }
    }
}

impl Role {
    /// The role in a message; `None` for what this release does not know.
    pub(crate) fn from_message(role: i32) -> Option<Self> {
        match pb::Role::try_from(role) {
            Ok(pb::Role::Worker) => Some(Self::Worker),
            Ok(pb::Role::Broker) => Some(Self::Broker),
            Ok(pb::Role::Unspecified) | Err(_) => None,
        }
    }
}
