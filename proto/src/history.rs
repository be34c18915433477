//! What channels keep, and places in them, as each of the protocols has it.

use muster_wire::{
    Position,
    session::{HistoryEntry, HistoryPage},
};

use crate::{control, link};

impl From<Position> for link::Position {
    fn from(Position { generation, offset }: Position) -> Self {
        Self { generation, offset }
    }
}

impl From<link::Position> for Position {
    fn from(position: link::Position) -> Self {
        let link::Position { generation, offset } = position;
        Self { generation, offset }
    }
}

impl From<Position> for control::HistoryPosition {
    fn from(Position { generation, offset }: Position) -> Self {
        Self { generation, offset }
    }
}

impl From<control::HistoryPosition> for Position {
    fn from(position: control::HistoryPosition) -> Self {
        let control::HistoryPosition { generation, offset } = position;
        Self { generation, offset }
    }
}

/// A broker's answer as a client gets it.
impl From<link::ReadResponse> for HistoryPage {
    fn from(response: link::ReadResponse) -> Self {
        let publications = response.publications.into_iter();
        Self {
            head: response.head.map(Position::from),
            complete: response.complete,
            more: response.more,
            publications: publications
                .map(|one| HistoryEntry {
                    offset: one.offset,
                    time_ms: one.time_ms,
                    data: one.data,
                })
                .collect(),
        }
    }
}

/// As an operator's program gets it.
impl From<HistoryPage> for control::HistoryResponse {
    fn from(page: HistoryPage) -> Self {
        let publications = page.publications.into_iter();
        Self {
            head: page.head.map(control::HistoryPosition::from),
            complete: page.complete,
            more: page.more,
            publications: publications
                .map(|one| control::HistoryEntry {
                    offset: one.offset,
                    time_ms: one.time_ms,
                    data: one.data,
                })
                .collect(),
        }
    }
}

impl From<control::HistoryResponse> for HistoryPage {
    fn from(response: control::HistoryResponse) -> Self {
        let publications = response.publications.into_iter();
        Self {
            head: response.head.map(Position::from),
            complete: response.complete,
            more: response.more,
            publications: publications
                .map(|one| HistoryEntry {
                    offset: one.offset,
                    time_ms: one.time_ms,
                    data: one.data,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_answer_reaches_operators_as_it_reaches_clients() {
        let kept = |offset, data: Option<&'static str>, time_ms| link::KeptPublication {
            offset,
            data: data.map(Into::into),
            time_ms,
        };
        let response = link::ReadResponse {
            head: Some(link::Position {
                generation: 7,
                offset: 9,
            }),
            complete: true,
            more: false,
            publications: vec![kept(8, Some("null"), 1_000), kept(9, None, 2_000)],
        };
        let page = HistoryPage::from(response);
        let head = Position {
            generation: 7,
            offset: 9,
        };
        assert_eq!(page.head, Some(head));
        assert_eq!((page.complete, page.more), (true, false));
        let entries = page.publications.iter();
        let entries = entries.map(|one| (one.offset, one.time_ms, one.data.as_deref()));
        let expected = [(8, 1_000, Some(&b"null"[..])), (9, 2_000, None)];
        assert!(entries.eq(expected), "{page:?}");
        let shown = control::HistoryResponse::from(page.clone());
        assert_eq!(HistoryPage::from(shown), page);
    }
}
