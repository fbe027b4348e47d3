//! Connections to an upstream, each driven by whoever waits for its answer.
//!
//! Invariants: a connection serves one call at a time, on the task of that call, so that what the
//! socket has is passed on without a switch of tasks; it goes back only after its answer was read
//! to the end; dropping an answer before that closes it, which cancels the call. A request that a
//! closed connection never took is sent again by a new one, since it was not sent at all. HTTP/1.1.

use crate::error::Error;
use crate::services::http::{self, Connector, IDLE_CONNECTIONS_MAX, IDLE_FOR};
use crate::services::woken::Woken;
use axum::http::header::HOST;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, Response, Uri};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

type Wire = hyper_rustls::MaybeHttpsStream<TokioIo<TcpStream>>;

/// The way to one server.
pub struct Connections {
    target: Uri,
    host: HeaderValue,
    connector: Connector,
    /// The longest unused first.
    idle: Mutex<VecDeque<Idle>>,
}

/// A connection, and since when it has not been used.
type Idle = (Box<Line>, Instant);

/// A connection. It is large, for it has hyper's buffers and state in it.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// `None` when it is closed. Dropping it fails what it has not taken yet.
    driver: Option<Connection<Wire, Full<Bytes>>>,
    /// It has answered before, so the server may have closed it meanwhile.
    is_used: bool,
    /// Guards the driver, together with what it gives.
    woken: Woken,
}

/// An answer under way, and the connection that it comes by.
pub struct AnswerBody {
    incoming: Incoming,
    /// What came together with the head has been taken.
    has_begun: bool,
    /// `None` when it has ended.
    line: Option<Box<Line>>,
    home: Arc<Connections>,
}

impl Connections {
    /// Connections to the server of `base`.
    ///
    /// # Errors
    /// [`Error::Internal`] when `base` names no server.
    pub fn new(base: &Uri, connect: Duration) -> Result<Arc<Self>, Error> {
        let unusable = || Error::Internal("an upstream's address names no server".to_owned());
        let authority = base.authority().ok_or_else(unusable)?;
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        Ok(Arc::new(Self {
            target: base.clone(),
            host: HeaderValue::from_str(host).map_err(|_| unusable())?,
            connector: http::connector(connect),
            idle: Mutex::default(),
        }))
    }

    /// Sends a request for `path` and waits for the answer's head.
    ///
    /// # Errors
    /// [`Error::UpstreamUnavailable`].
    pub async fn send(
        self: &Arc<Self>,
        path: &PathAndQuery,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<AnswerBody>, Error> {
        *request.uri_mut() = Uri::from(path.clone());
        request.headers_mut().insert(HOST, self.host.clone());
        loop {
            let mut line = match self.take_idle() {
                Some(line) => line,
                None => self.connect().await?,
            };
            match line.send(request).await {
                Ok(answer) => {
                    let home = self.clone();
                    line.is_used = true;
                    return Ok(answer.map(|incoming| AnswerBody {
                        incoming,
                        has_begun: false,
                        line: Some(line),
                        home,
                    }));
                }
                // The server had closed it before it took anything. The next is another idle one
                // or, when they are used up, a new one.
                Err(mut unsent) if line.is_used && unsent.message().is_some() => {
                    request = unsent.take_message().ok_or_else(gone)?;
                }
                Err(failed) => return Err(unavailable("request", failed.error())),
            }
        }
    }

    async fn connect(&self) -> Result<Box<Line>, Error> {
        let connector = TowerToHyperService::new(self.connector.clone());
        let wire = connector
            .call(self.target.clone())
            .await
            .map_err(|error| unavailable("connect", error.as_ref()))?;
        let (sender, driver) =
            handshake(wire).await.map_err(|error| unavailable("connect", &error))?;
        let (driver, woken) = (Some(driver), Woken::default());
        Ok(Box::new(Line { sender, driver, is_used: false, woken }))
    }

    /// The latest used, so that the others get old enough to be let go.
    fn take_idle(&self) -> Option<Box<Line>> {
        loop {
            let (mut line, since) = self.lock().pop_back()?;
            if since.elapsed() < IDLE_FOR && line.is_open() {
                return Some(line);
            }
        }
    }

    fn give_back(&self, mut line: Box<Line>) {
        if !line.is_open() {
            return;
        }
        line.woken.rest();
        let mut idle = self.lock();
        let is_old = |(_, since): &Idle| since.elapsed() >= IDLE_FOR;
        while idle.len() >= IDLE_CONNECTIONS_MAX || idle.front().is_some_and(is_old) {
            idle.pop_front();
        }
        idle.push_back((line, Instant::now()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        // A panic elsewhere leaves a list of connections as good as it was.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Unsent = hyper::client::conn::TrySendError<Request<Full<Bytes>>>;

impl Line {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unsent> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let Self { driver, woken, .. } = self;
        // The request lies ready since the last look at this connection.
        woken.renew();
        std::future::poll_fn(|cx| {
            woken.poll(cx, |cx| {
                drive(driver, cx);
                answer.as_mut().poll(cx)
            })
        })
        .await
    }

    /// Nothing is under way, and the server has not hung up.
    fn is_open(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Moves what can be moved between socket and answer. How it ends shows in the answer.
fn drive(driver: &mut Option<Connection<Wire, Full<Bytes>>>, cx: &mut Context<'_>) {
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
}

impl AnswerBody {
    fn end(&mut self) {
        if let Some(line) = self.line.take() {
            self.home.give_back(line);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut incoming = Pin::new(&mut this.incoming);
        let frame = match this.line.as_deref_mut() {
            Some(Line { driver, woken, .. }) => woken.poll(cx, |cx| {
                // What is there already must not be lost to a failure behind it.
                if !std::mem::replace(&mut this.has_begun, true) {
                    let first = incoming.as_mut().poll_frame(cx);
                    if first.is_ready() {
                        return first;
                    }
                }
                drive(driver, cx);
                incoming.as_mut().poll_frame(cx)
            }),
            None => incoming.poll_frame(cx),
        };
        if let Poll::Ready(None) = frame {
            this.end();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.end();
        }
    }
}

fn unavailable(doing: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::UpstreamUnavailable(format!("{doing}: {}", http::root(error)))
}

fn gone() -> Error {
    Error::UpstreamUnavailable("request: the connection is gone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    const WAIT: Duration = Duration::from_secs(30);

    /// A server that answers a request once, of which it reads the beginning, and resets the
    /// connection when it is told.
    async fn hasty(
        answer: &'static str,
    ) -> (Uri, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
        let (reset, told) = oneshot::channel();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            told.await.unwrap();
            stream.set_zero_linger().unwrap();
        });
        (base, reset, server)
    }

    /// As a server does that refuses a request before it has read it.
    #[tokio::test]
    async fn an_answer_that_came_whole_is_whole_though_the_request_was_not_taken() {
        let answer = "HTTP/1.1 413 Too Large\r\ntransfer-encoding: chunked\r\n\r\n\
                      7\r\nrefused\r\n0\r\n\r\n";
        let (base, reset, server) = hasty(answer).await;
        let connections = Connections::new(&base, WAIT).unwrap();
        let mut request = Request::new(Full::new(Bytes::from(vec![b'x'; 32 << 20])));
        *request.method_mut() = axum::http::Method::POST;
        let path = PathAndQuery::from_static("/v1/chat/completions");
        let answer = tokio::time::timeout(WAIT, connections.send(&path, request)).await;
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        reset.send(()).unwrap();
        server.await.unwrap();
        let body = tokio::time::timeout(WAIT, answer.into_body().collect()).await.unwrap();
        assert_eq!(body.unwrap().to_bytes(), "refused");
    }
}
