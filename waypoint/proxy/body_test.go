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

// lender is a body all of whose pieces are in the same memory, unless somebody may still use that.
type lender struct {
	buf  []byte
	left int
}

func (l *lender) Next() ([]byte, error) {
	if l.left == 0 {
		return nil, io.EOF
	}
	if l.buf == nil {
		l.buf = make([]byte, 8)
	}
	for i := range l.buf {
		l.buf[i] = byte('0' + l.left)
	}
	l.left--
	return l.buf, nil
}

func (*lender) Ready() bool              { return true }
func (*lender) Trailers() message.Fields { return nil }
func (l *lender) Close()                 { copy(l.buf, "stranger") }
func (l *lender) Leave()                 { l.buf = nil }

// TestPieceInUse: what a try's sender is still writing to a backend that takes nothing does not become what others have in that
// memory, when the next try pulls on or the request is over.
func TestPieceInUse(t *testing.T) {
	for name, after := range map[string]func(*source){
		"next try": func(s *source) {
			if !s.again(true) {
				t.Fatal("again(true) = false, though all is kept")
			}
			next := s.attempt()
			for {
				if _, err := next.Next(); err != nil {
					break
				}
			}
		},
		"end": (*source).close,
	} {
		s := newSource(&lender{left: 3})
		s.keep = true
		piece, err := s.attempt().Next()
		if err != nil {
			t.Fatal(err)
		}
		after(s)
		if string(piece) != "33333333" {
			t.Errorf("%s: the first try's sender sends %q", name, piece)
		}
	}
}

// TestPieceReturned: a sender that pulls on, or is done, leaves nothing to garbage collection.
func TestPieceReturned(t *testing.T) {
	body := &lender{left: 2}
	s := newSource(body)
	a := s.attempt()
	first, err := a.Next()
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.Next()
	if err != nil || &first[0] != &second[0] {
		t.Errorf("the second piece is not in the memory of the first (%v)", err)
	}
	a.Close()
	s.close()
	if string(second) != "stranger" {
		t.Errorf("the memory of the last piece was not given back: it has %q", second)
	}
}
