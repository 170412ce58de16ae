package telemetry

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits of a Writer.
const (
	// defaultLines is the length of the queue where none is given.
	defaultLines = 10_000
	// batchBytes is about how much goes out in one write.
	batchBytes = 64 << 10
	// keptBytes is the most memory that a line in the pool keeps.
	keptBytes = 4 << 10
	// closeTimeout bounds how long Close waits for a reader that does not read.
	closeTimeout = 5 * time.Second
)

// Writer puts log lines out without making their writers wait: what does not fit into its queue, or cannot be written, is
// dropped and counted.
type Writer struct {
	out     io.Writer
	queue   chan *[]byte
	pool    sync.Pool // of *[]byte
	dropped prometheus.Counter

	closing atomic.Bool
	quit    chan struct{} // closed by Close
	ended   chan struct{} // closed when the goroutine has ended
	err     error         // the goroutine's, until ended
}

// NewWriter makes a Writer to w with a queue of lines (0: 10,000) and starts its goroutine, which Close ends. It counts what
// it drops in ambit_log_lines_dropped_total; reg may be nil.
func NewWriter(w io.Writer, lines int, reg prometheus.Registerer) *Writer {
	if lines <= 0 {
		lines = defaultLines
	}
	writer := &Writer{
		out:   w,
		queue: make(chan *[]byte, lines),
		pool:  sync.Pool{New: func() any { return new([]byte) }},
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_log_lines_dropped_total", Help: "Log lines that were dropped because they came faster than they could be written, or could not be written at all.",
		}),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
	}
	if reg != nil {
		reg.MustRegister(writer.dropped)
	}
	go writer.run()
	return writer
}

// Write takes one line. It never blocks and never fails.
func (w *Writer) Write(p []byte) (int, error) {
	line := w.pool.Get().(*[]byte)
	*line = append((*line)[:0], p...)
	if !w.closing.Load() {
		select {
		case w.queue <- line:
			return len(p), nil
		default:
		}
	}
	if cap(*line) <= keptBytes {
		w.pool.Put(line)
	}
	w.dropped.Inc()
	return len(p), nil
}

// run writes until Close, and then what is left.
func (w *Writer) run() {
	defer close(w.ended)
	var batch []byte
	for {
		select {
		case line := <-w.queue:
			batch = w.flush(w.take(batch[:0], line))
		case <-w.quit:
			for len(w.queue) > 0 {
				batch = w.flush(batch[:0])
			}
			return
		}
	}
}

// flush fills the batch up with what is queued, writes it, and returns it for the next time.
func (w *Writer) flush(batch []byte) []byte {
	for len(batch) < batchBytes && len(w.queue) > 0 {
		batch = w.take(batch, <-w.queue) // it is the only reader, so this does not block
	}
	if n, err := w.out.Write(batch); err != nil {
		w.dropped.Add(float64(bytes.Count(batch[n:], []byte{'\n'})))
		if w.err == nil {
			w.err = err
		}
	}
	return batch
}

// take appends a line, whose memory goes back to the pool.
func (w *Writer) take(batch []byte, line *[]byte) []byte {
	batch = append(batch, *line...)
	if cap(*line) <= keptBytes {
		w.pool.Put(line)
	}
	return batch
}

// Close puts out what is queued, and returns when that is done, or after 5 s if nobody reads. It returns the first error of
// the writer beneath. Lines that are written later are dropped.
func (w *Writer) Close() error {
	if w.closing.CompareAndSwap(false, true) {
		close(w.quit)
	}
	select {
	case <-w.ended:
		return w.err
	case <-time.After(closeTimeout):
		return errors.New("log: nobody reads what is left to be written")
	}
}
