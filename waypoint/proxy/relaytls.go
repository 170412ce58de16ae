package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
)

// relayTLS carries bytes between a client's tunnel and an endpoint that is spoken to by TLS, until both directions have ended, one
// has failed, or ctx ends: an end is passed on as such, a failure as a reset. It closes both.
func relayTLS(ctx context.Context, client *hbone.Stream, endpoint *tls.Conn, counters *hbone.Counters) error {
	var once sync.Once
	var cause error
	over := func(err error) {
		once.Do(func() {
			cause = err
			if err != nil {
				client.Reset(h2.ConnectError)
			}
			_ = client.Close()
			_ = endpoint.NetConn().Close() // at once: who else writes may be stuck
		})
	}
	defer context.AfterFunc(ctx, func() { over(context.Cause(ctx)) })()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := copyCounted(endpoint, client, &counters.Sent); err != nil {
			over(err)
		} else if err := endpoint.CloseWrite(); err != nil {
			over(err)
		}
	})
	if err := copyCounted(client, endpoint, &counters.Received); err != nil {
		over(err)
	} else if err := client.CloseWrite(); err != nil {
		over(err)
	}
	wg.Wait()
	over(nil)
	return cause
}

// copyCounted copies until the end. It holds no buffer while it waits, where src can tell that something has come.
func copyCounted(dst io.Writer, src io.Reader, n *atomic.Uint64) error {
	waiter, waits := src.(interface{ WaitReadable() error })
	for {
		if waits {
			_ = waiter.WaitReadable() // Read returns what it found
		}
		b := buffer.Get(buffer.Small)
		got, err := src.Read(b)
		if got > 0 {
			n.Add(uint64(got))
			if _, failed := dst.Write(b[:got]); failed != nil {
				err = failed
			}
		}
		buffer.Put(b)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
