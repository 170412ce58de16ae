package codec

import (
	"context"
	"slices"
	"sync"
	"time"
)

// lifetime is the context of an exchange. Unlike those of package context it costs one allocation, and nobody else's lock: what is
// to happen at its end is told by AfterFunc, which package context uses as well.
type lifetime struct {
	mu    sync.Mutex // guards what follows
	err   error
	done  chan struct{} // made when somebody asks
	after []ender
	first [1]ender // of after: mostly there is no other
}

// ender is told of the end of a lifetime.
type ender interface{ ended() }

// ending is an ender made of a function.
type ending struct{ f func() }

func (e *ending) ended() { e.f() }

var _ context.Context = (*lifetime)(nil)

// Deadline is of context.Context: there is none.
func (*lifetime) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value is of context.Context: there is none.
func (*lifetime) Value(any) any { return nil }

// Err is of context.Context.
func (l *lifetime) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Done is of context.Context.
func (l *lifetime) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.err != nil {
			close(l.done)
		}
	}
	return l.done
}

// AfterFunc has f called in a goroutine of its own when the lifetime ends, unless stop is called before, which tells whether it was
// in time.
func (l *lifetime) AfterFunc(f func()) (stop func() bool) {
	e := &ending{f}
	l.add(e)
	return func() bool { return l.remove(e) }
}

// add has e told of the end, in a goroutine of its own.
func (l *lifetime) add(e ender) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		go e.ended() // as context.AfterFunc does
		return
	}
	if l.after == nil {
		l.after = l.first[:0]
	}
	l.after = append(l.after, e)
}

// remove undoes add, and tells whether it was in time.
func (l *lifetime) remove(e ender) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.after, e)
	if i >= 0 {
		l.after = slices.Delete(l.after, i, i+1)
	}
	return i >= 0
}

// end ends it.
func (l *lifetime) end() {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = context.Canceled
	if l.done != nil {
		close(l.done)
	}
	after := l.after
	l.after = nil
	l.mu.Unlock()
	for _, e := range after {
		go e.ended() // as context.AfterFunc does
	}
}

// bound has something told of the end of a context.
type bound struct {
	life *lifetime   // the context, if it is one of ours
	stop func() bool // of another context
}

// begin has e told of the end of ctx, in a goroutine of its own.
func (b *bound) begin(ctx context.Context, e ender) {
	if l, ok := ctx.(*lifetime); ok {
		b.life = l
		l.add(e)
	} else if ctx.Done() != nil {
		b.stop = context.AfterFunc(ctx, e.ended)
	}
}

// end undoes begin, and tells whether it was in time.
func (b *bound) end(e ender) bool {
	switch {
	case b.life != nil:
		return b.life.remove(e)
	case b.stop != nil:
		return b.stop()
	}
	return true
}
