//! One exchange over a connection of hyper's.
//!
//! Owns who drives the connection: whoever asks, so that nothing is left of it when that ends.

use std::pin::pin;

use futures::future::{Either, select};

/// Waits for `answer` while `connection` is driven.
pub async fn exchange<A: Future>(connection: impl Future, answer: A) -> A::Output {
    match select(pin!(answer), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // A connection that has ended has given its answer, or will give none.
        Either::Right((_, answer)) => answer.await,
    }
}
