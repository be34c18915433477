//! One WebSocket after the other; the only file that sees tokio-tungstenite.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use muster_wire::{close::CloseCode, frame::CLOSE_REASON_BYTES_MAX};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest,
        handshake::client::Request,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use crate::Error;

/// Bytes to be written beyond which no commands are taken.
const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// Read and write buffers of one connection, in bytes.
const BUFFER_BYTES: usize = 16 << 10;
/// Messages that are taken from the socket in one turn.
const MESSAGES_PER_TURN: usize = 64;
/// How long the server may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Pinned<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where to connect.
#[derive(Debug)]
pub(crate) struct Endpoint {
    request: Request,
    config: WebSocketConfig,
}

impl Endpoint {
    pub(crate) fn new(url: &str, message_bytes_max: usize) -> Result<Self, Error> {
        let request = url.into_client_request().map_err(connect_error)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        Ok(Self { request, config })
    }
}

/// What happened on the connection.
#[derive(Debug)]
pub(crate) enum Happened {
    Opened,
    OpenFailed(Error),
    /// Text frames arrived; they are in the inbox.
    Received,
    /// The connection is gone.
    Closed {
        code: CloseCode,
        reason: String,
    },
}

/// The present connection, if any, and the one before while it is closing.
pub(crate) struct Connection {
    state: State,
    closing: Option<Pinned<()>>,
    /// Text frames to be handled before [`Happened`].
    pub(crate) inbox: Vec<Utf8Bytes>,
}

enum State {
    None,
    Opening(Pinned<Result<Socket, tungstenite::Error>>),
    Open(Box<Open>),
}

struct Open {
    socket: Socket,
    outgoing: VecDeque<Message>,
    outgoing_bytes: usize,
    /// Something is in the socket's own buffer.
    is_dirty: bool,
}

impl Connection {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::None,
            closing: None,
            inbox: Vec::new(),
        }
    }

    /// Begins to open a connection.
    pub(crate) fn open(&mut self, endpoint: &Endpoint) {
        let (request, config) = (endpoint.request.clone(), endpoint.config);
        self.state = State::Opening(Box::pin(async move {
            let connected = connect_async_with_config(request, Some(config), true).await;
            connected.map(|(socket, _)| socket)
        }));
    }

    /// Queues a text frame; dropped if there is no connection.
    pub(crate) fn send(&mut self, text: String) {
        if let State::Open(open) = &mut self.state {
            open.queue(Message::text(text));
        }
    }

    /// Whether more may be queued.
    pub(crate) fn has_room(&self) -> bool {
        match &self.state {
            State::Open(open) => open.outgoing_bytes < OUTGOING_BYTES_MAX,
            State::None | State::Opening(_) => true,
        }
    }

    /// Sends what is queued and a close frame, then forgets the connection.
    pub(crate) fn close(&mut self, code: CloseCode, reason: &str) {
        if let State::Open(mut open) = std::mem::replace(&mut self.state, State::None) {
            let frame = CloseFrame {
                code: code.0.into(),
                reason: cut(reason).into(),
            };
            open.queue(Message::Close(code.is_sendable().then_some(frame)));
            self.closing = Some(Box::pin(open.finish()));
        }
    }

    /// Waits until a closing handshake is done or its time is over.
    pub(crate) async fn closed(&mut self) {
        if let Some(closing) = self.closing.take() {
            closing.await;
        }
    }

    /// Writes what is queued, and waits for something to happen; what is in the
    /// inbox happened before it. Cancel-safe.
    pub(crate) async fn happened(&mut self) -> Happened {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        if let Some(closing) = &mut self.closing
            && closing.as_mut().poll(cx).is_ready()
        {
            self.closing = None;
        }
        let happened = match &mut self.state {
            State::None => return Poll::Pending,
            State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(socket) => {
                    self.state = State::Open(Box::new(Open::new(socket)));
                    return Poll::Ready(Happened::Opened);
                }
                Err(error) => Happened::OpenFailed(connect_error(error)),
            },
            State::Open(open) => ready!(open.poll(cx, &mut self.inbox)),
        };
        if !matches!(happened, Happened::Received)
            && let State::Open(mut open) = std::mem::replace(&mut self.state, State::None)
        {
            // There may be an answer to a close frame to be written.
            open.outgoing.clear();
            self.closing = Some(Box::pin(open.finish()));
        }
        Poll::Ready(happened)
    }
}

impl Open {
    const fn new(socket: Socket) -> Self {
        Self {
            socket,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            is_dirty: false,
        }
    }

    fn queue(&mut self, message: Message) {
        self.outgoing_bytes += message.len();
        self.outgoing.push_back(message);
    }

    fn poll(&mut self, cx: &mut Context<'_>, inbox: &mut Vec<Utf8Bytes>) -> Poll<Happened> {
        if let Poll::Ready(Err(_)) = self.poll_write(cx) {
            return Poll::Ready(lost());
        }
        for _ in 0..MESSAGES_PER_TURN {
            match self.socket.poll_next_unpin(cx) {
                Poll::Pending if inbox.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Message::Text(text)))) => inbox.push(text),
                Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                    return Poll::Ready(closed_by_server(frame));
                }
                // JSON comes as text only, and tungstenite answers pings itself.
                Poll::Ready(Some(Ok(
                    Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_),
                ))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(lost()),
            }
        }
        Poll::Ready(Happened::Received)
    }

    /// Writes everything that is queued; ready when that is done.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        while !self.outgoing.is_empty() {
            ready!(self.socket.poll_ready_unpin(cx))?;
            if let Some(message) = self.outgoing.pop_front() {
                self.outgoing_bytes -= message.len();
                self.is_dirty = true;
                self.socket.start_send_unpin(message)?;
            }
        }
        if self.is_dirty {
            ready!(self.socket.poll_flush_unpin(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is left and waits for the server to end the connection.
    async fn finish(mut self: Box<Self>) {
        let finish = async {
            if poll_fn(|cx| self.poll_write(cx)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // A server that does not answer is left without one.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, finish).await;
    }
}

fn closed_by_server(frame: Option<CloseFrame>) -> Happened {
    match frame {
        Some(frame) => Happened::Closed {
            code: CloseCode(frame.code.into()),
            reason: frame.reason.as_str().to_owned(),
        },
        None => Happened::Closed {
            code: CloseCode::NO_STATUS,
            reason: String::new(),
        },
    }
}

fn lost() -> Happened {
    Happened::Closed {
        code: CloseCode::ABNORMAL,
        reason: String::new(),
    }
}

fn connect_error(error: tungstenite::Error) -> Error {
    Error::Connect(Box::new(error))
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
