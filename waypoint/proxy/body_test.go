package proxy

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// pieces is a body whose pieces come when the test gives them.
type pieces struct{ next chan []byte }

func (p *pieces) Next() ([]byte, error) {
	b, ok := <-p.next
	if !ok {
		return nil, io.EOF
	}
	return b, nil
}

func (*pieces) Ready() bool              { return false }
func (*pieces) Trailers() message.Fields { return nil }
func (*pieces) Close()                   {}

// TestBodyBetweenTries: what a try's sender still pulls after it was decided that there is another try is not lost to that one,
// even where it is more than is kept, or nothing is.
func TestBodyBetweenTries(t *testing.T) {
	for name, keep := range map[string]bool{"kept": true, "not kept": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body := &pieces{next: make(chan []byte)}
				s := newSource(body)
				s.keep = keep
				first := s.attempt()
				sender := make(chan error, 1)
				go func() {
					_, err := first.Next()
					sender <- err
				}()
				synctest.Wait() // it is pulling
				if !s.again(true) {
					t.Fatal("again(true) = false, though nothing was pulled")
				}
				body.next <- make([]byte, maxKept+1)
				if err := <-sender; err != errSuperseded {
					t.Errorf("the first try got %v, want %v", err, errSuperseded)
				}
				second := s.attempt()
				go close(body.next)
				got := 0
				for {
					p, err := second.Next()
					got += len(p)
					if err != nil {
						break
					}
				}
				if got != maxKept+1 {
					t.Errorf("the second try got %d bytes of %d", got, maxKept+1)
				}
				s.close()
			})
		})
	}
}
