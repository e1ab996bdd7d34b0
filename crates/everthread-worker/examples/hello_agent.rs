//! An agent in ten lines: `cargo run -p everthread-worker --example hello_agent`.

use everthread_worker::{CancellationToken, Error, Role, Run, Worker, WorkerError};

async fn hello(run: Run) -> Result<(), Error> {
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    for word in format!("You said: {}", run.input_text()).split_inclusive(' ') {
        text.append(word).await?;
    }
    message.complete().await
}

#[tokio::main]
async fn main() -> Result<(), WorkerError> {
    let worker = Worker::builder("ws://127.0.0.1:7400", "dev").agent("hello", 16, hello).connect()?;
    worker.run(CancellationToken::new()).await
}
