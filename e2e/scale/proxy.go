package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/scale/subscriber"
)

// seen is what the node proxy has of a resource.
type seen struct {
	revision string
	removed  bool
	at       time.Time
}

// proxy is a running subscriber and what it has told.
type proxy struct {
	process *process
	input   io.WriteCloser
	reader  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	changed chan struct{}
	known   map[string]seen // what was told since its first snapshot
	last    subscriber.Event
	ended   map[string]subscriber.Event // the last of each kind but pushes
	pushes  tally
	// backwards names the first resource that went back to an older revision.
	backwards string
	failed    error
}

// tally counts what came.
type tally struct {
	pushes, resources int
	received, sent    int64 // bytes
}

func (t tally) since(o tally) tally {
	return tally{t.pushes - o.pushes, t.resources - o.resources, t.received - o.received, t.sent - o.sent}
}

// startProxy starts a subscriber to the control plane at address.
func startProxy(program, address, dir string) (*proxy, error) {
	in, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	output, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, input.Close())
	}
	defer out.Close()
	p := &proxy{input: input, changed: make(chan struct{}), known: map[string]seen{}, ended: map[string]subscriber.Event{}}
	p.process, err = start("the node proxy", filepath.Join(dir, "subscriber.log"), nil, in, out, program, address)
	if err != nil {
		return nil, errors.Join(err, input.Close(), output.Close())
	}
	p.reader.Go(func() { p.read(output) })
	return p, nil
}

// read takes what the subscriber tells until its output ends.
func (p *proxy) read(output *os.File) {
	defer output.Close()
	for lines := json.NewDecoder(output); ; {
		var e subscriber.Event
		err := lines.Decode(&e)
		p.mu.Lock()
		if err == nil {
			p.note(e)
		} else if !errors.Is(err, io.EOF) {
			p.failed = fmt.Errorf("read what the node proxy tells: %w", err)
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// note keeps an event. The caller holds mu.
func (p *proxy) note(e subscriber.Event) {
	p.last = e
	p.pushes.received, p.pushes.sent = e.Received, e.Sent
	if e.Kind != subscriber.Pushed {
		p.ended[e.Kind] = e
		return
	}
	p.pushes.pushes++
	p.pushes.resources += e.Upserts + e.Removed
	for _, c := range e.Changes {
		before := p.known[c.Name]
		if older(c.Revision, before.revision) && p.backwards == "" {
			p.backwards = fmt.Sprintf("%s: revision %s after %s", c.Name, c.Revision, before.revision)
		}
		p.known[c.Name] = seen{revision: c.Revision, removed: c.Removed, at: time.Unix(0, e.At)}
	}
}

// older reports whether both are numbers and a is the smaller one.
func older(a, b string) bool {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	return errX == nil && errY == nil && x < y
}

// say gives a command.
func (p *proxy) say(command string) error {
	_, err := io.WriteString(p.input, command+"\n")
	return err
}

// await waits until what the proxy has told is enough. ok is called with mu held.
func (p *proxy) await(ctx context.Context, what string, limit time.Duration, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		p.mu.Lock()
		done, failed, changed := ok(), p.failed, p.changed
		p.mu.Unlock()
		if done {
			return nil
		}
		if failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-p.process.done:
			return p.process.ended()
		case <-ctx.Done():
			return fmt.Errorf("wait until the node proxy %s: %w", what, context.Cause(ctx))
		}
	}
}

// awaitKind waits for an event of that kind and takes it away.
func (p *proxy) awaitKind(ctx context.Context, kind string, limit time.Duration) (subscriber.Event, error) {
	var e subscriber.Event
	err := p.await(ctx, "tells: "+kind, limit, func() (ok bool) {
		e, ok = p.ended[kind]
		delete(p.ended, kind)
		return ok
	})
	return e, err
}

// awaitRevision waits until the proxy has that revision of a pod; an empty one means any. It returns when the proxy got it.
func (p *proxy) awaitRevision(ctx context.Context, name, revision string, limit time.Duration) (time.Time, error) {
	var at time.Time
	err := p.await(ctx, "knows "+name, limit, func() bool {
		s, ok := p.known[name]
		at = s.at
		return ok && !s.removed && (revision == "" || s.revision == revision)
	})
	return at, err
}

// now returns the counts so far, and an error if a resource has gone back to an older state.
func (p *proxy) now() (tally, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.backwards != "" {
		return tally{}, fmt.Errorf("changes came out of order: %s", p.backwards)
	}
	return p.pushes, p.failed
}

// stop ends the subscriber.
func (p *proxy) stop() error {
	err := errors.Join(p.input.Close(), p.process.stop())
	p.reader.Wait()
	return err
}
