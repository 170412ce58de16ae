package saved

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

const (
	policies  = "policies"
	addresses = "addresses"
)

func config(dir string) Config {
	return Config{Dir: dir, Owner: "node1", Types: []string{policies, addresses}, Logger: slog.New(slog.DiscardHandler)}
}

// process is one process that saves.
type process struct {
	t        *testing.T
	store    *Store
	contents *Contents
	handlers map[string]xds.Handler
}

func start(t *testing.T, cfg Config) *process {
	t.Helper()
	s, c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, store: s, contents: c, handlers: map[string]xds.Handler{}}
	for _, typ := range cfg.Types {
		p.handlers[typ] = s.Wrap(xds.Handler{TypeURL: typ, Apply: reject})
	}
	return p
}

// reject refuses what is called bad, and what is called closed, which it puts in force in another form.
func reject(upserts []*discoveryv3.Resource, _ []string) []xds.Rejection {
	var all []xds.Rejection
	for _, r := range upserts {
		if name := r.GetName(); name == "bad" || name == "closed" {
			all = append(all, xds.Rejection{Name: name, Err: errors.New("bad"), Replaced: name == "closed"})
		}
	}
	return all
}

// told has the process hear of resources, written as name=value.
func (p *process) told(typ string, removed []string, upserts ...string) {
	var all []*discoveryv3.Resource
	for _, u := range upserts {
		name, value, _ := strings.Cut(u, "=")
		all = append(all, &discoveryv3.Resource{Name: name, Version: "v" + value, Resource: &anypb.Any{Value: []byte(value)}})
	}
	p.handlers[typ].Apply(all, removed)
}

// end is the end of the process, which was synced if it says so. What it has heard is written.
func (p *process) end(synced bool) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	if synced {
		close(done)
		ran := make(chan error)
		go func() { ran <- p.store.Run(ctx, done, func() bool { return true }) }()
		for deadline := time.Now().Add(30 * time.Second); !exists(p.store.path()); {
			if time.Now().After(deadline) {
				p.t.Fatal("nothing is put in place")
			}
		}
		cancel()
		<-ran
	} else {
		cancel()
		p.store.Run(ctx, done, func() bool { return false })
	}
	p.told(addresses, nil, "late=1")
	if n := len(p.store.pending); n > 0 {
		p.t.Errorf("%d changes are gathered that nobody writes", n)
	}
	if err := p.store.Close(); err != nil {
		p.t.Error(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// text lists contents as "type: name=value@version ...".
func text(c *Contents) string {
	if c == nil {
		return "nothing"
	}
	var lines []string
	for i, list := range c.Resources {
		var words []string
		for _, r := range list {
			words = append(words, fmt.Sprintf("%s=%s@%s", r.GetName(), r.GetResource().GetValue(), r.GetVersion()))
		}
		slices.Sort(words)
		lines = append(lines, []string{policies, addresses}[i]+": "+strings.Join(words, " "))
	}
	return strings.Join(lines, "; ")
}

// TestUnsettled: what belongs to a change has not come, so that the state before is the one to begin with.
func TestUnsettled(t *testing.T) {
	var unsettled atomic.Bool
	cfg := config("")
	cfg.Unsettled = func(typ, name string) bool { return typ == policies && name == "p" && unsettled.Load() }
	for _, tt := range []struct {
		name string
		then func(p *process)
		want string
	}{
		{"nothing more", func(*process) {}, "policies: p=1@v1 q=2@v2; addresses: p=1@v1"},
		{"another change", func(p *process) { p.told(policies, nil, "p=3") }, "policies: p=1@v1 q=2@v2; addresses: p=1@v1"},
		{"it settles", func(*process) { unsettled.Store(false) }, "policies: p=2@v2 q=2@v2; addresses: p=1@v1"},
		{"a change that is settled", func(p *process) { unsettled.Store(false); p.told(policies, nil, "p=3") },
			"policies: p=3@v3 q=2@v2; addresses: p=1@v1"},
		{"removal", func(p *process) { p.told(policies, []string{"p"}); unsettled.Store(false) }, "policies: q=2@v2; addresses: p=1@v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			cfg.Dir = t.TempDir()
			unsettled.Store(false)
			p := start(t, cfg)
			p.told(policies, nil, "p=1", "q=1")
			unsettled.Store(true)
			p.told(policies, nil, "p=2", "q=2")
			p.told(addresses, nil, "p=1")
			tt.then(p)
			p.end(true)
			p = start(t, cfg)
			if got := text(p.contents); got != tt.want {
				t.Errorf("saved: %s, want %s", got, tt.want)
			}
			p.end(false)
		})
	}
}

// TestOneProcessAfterAnother saves, changes and loads: what was removed or replaced does not come back, what was rejected
// stays as it was, unless that is in force no more.
func TestOneProcessAfterAnother(t *testing.T) {
	dir := t.TempDir()
	p := start(t, config(dir))
	if p.contents != nil {
		t.Fatalf("at first there is %s", text(p.contents))
	}
	p.told(addresses, nil, "a=1", "b=1", "c=1", "bad=1")
	p.told(policies, nil, "p=1", "closed=1")
	p.told(addresses, []string{"b", "never"}, "a=2")
	p.end(true)
	const want = "policies: closed=1@v1 p=1@v1; addresses: a=2@v2 c=1@v1"
	p = start(t, config(dir))
	if got := text(p.contents); got != want {
		t.Errorf("saved: %s, want %s", got, want)
	}
	if age := time.Since(p.contents.At); age < 0 || age > time.Minute {
		t.Errorf("age %v", age)
	}
	// One that never heard of the control plane changes nothing, and leaves nothing.
	p.told(addresses, nil, "z=1")
	p.end(false)
	p = start(t, config(dir))
	if got := text(p.contents); got != want {
		t.Errorf("after a process that was not synced: %s, want %s", got, want)
	}
	p.end(false)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("folder has %v, %v; want one file", entries, err)
	}
	other := config(dir)
	other.Owner = "node2"
	p = start(t, other)
	if p.contents != nil {
		t.Errorf("another node's is used: %s", text(p.contents))
	}
	p.end(false)
}

// TestDamage cuts the file off at every length, and changes every byte: what comes before is used, nothing wrong ever is.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	p := start(t, config(dir))
	for i := range 3 {
		p.told(addresses, nil, fmt.Sprintf("r%d=%d", i, i))
		p.store.write()
	}
	p.end(true)
	path := filepath.Join(dir, api.StateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"nothing"}
	for _, a := range []string{"r0=0@v0", "r0=0@v0 r1=1@v1", "r0=0@v0 r1=1@v1 r2=2@v2"} {
		allowed = append(allowed, "policies: ; addresses: "+a)
	}
	try := func(b []byte) string {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, _ := read(path, config(dir))
		got := text(c)
		if !slices.Contains(allowed, got) {
			t.Errorf("read %s, want a beginning of what was saved", got)
		}
		return got
	}
	seen := map[string]bool{}
	for n := range len(good) + 1 {
		seen[try(good[:n])] = true
	}
	if len(seen) != len(allowed) {
		t.Errorf("of a file that was cut off there is %v, want each of %v", seen, allowed)
	}
	headerEnd := slices.Index(good, '\n') + 1
	for i := headerEnd; i < len(good); i++ {
		b := slices.Clone(good)
		b[i] ^= 0x10
		if got := try(b); got == allowed[3] {
			t.Errorf("byte %d of %d is wrong and nobody has noticed", i, len(good))
		}
	}
}

// TestRewrite changes one resource again and again: the file stays in proportion to what is live.
func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	p := start(t, config(dir))
	big := strings.Repeat("x", 100<<10)
	for i := range 50 {
		p.told(addresses, nil, fmt.Sprintf("a=%d%s", i, big), "b=1")
		p.store.write()
		if i == 20 {
			p.store.place()
		}
	}
	if most := 2*(p.store.live+slack) + 200<<10; p.store.end > most {
		t.Errorf("file of %d bytes for %d live ones", p.store.end, p.store.live)
	}
	if p.store.end > 4<<20 {
		t.Errorf("file of %d bytes: it was not written anew", p.store.end)
	}
	p.end(true)
	c, err := read(filepath.Join(dir, api.StateFile), config(dir))
	if err != nil || c.Count() != 2 || !strings.Contains(text(c), "a=49x") {
		t.Errorf("%.100s, %v", text(c), err)
	}
}

// TestTwoProcesses has a second process put its file in place: the first, which lives on, does not overwrite it.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	first := start(t, config(dir))
	first.told(addresses, nil, "a=1")
	first.store.write()
	first.store.place()
	second := start(t, config(dir))
	second.told(addresses, nil, "a=2")
	second.store.write()
	second.store.place()
	first.told(addresses, nil, "a=3")
	first.store.write()
	first.told(addresses, nil, "b=1")
	if n := len(first.store.pending); n > 0 {
		t.Errorf("the first gathers %d changes that it is not to write", n)
	}
	first.store.Close()
	second.store.Close()
	c, err := read(filepath.Join(dir, api.StateFile), config(dir))
	if want := "policies: ; addresses: a=2@v2"; err != nil || text(c) != want {
		t.Errorf("%s, %v; want the second's: %s", text(c), err, want)
	}
}

// TestGone has the file removed, as by an uninstall, under a process that lives on. While it may be about to end, or without a control
// plane, nothing is written; when it is clear that it stays, all it knows is saved again.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t.TempDir())
		p := start(t, cfg)
		p.told(addresses, nil, "a=1", "b=1")
		var connected atomic.Bool
		connected.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		synced, ran := make(chan struct{}), make(chan error)
		close(synced)
		go func() { ran <- p.store.Run(ctx, synced, connected.Load) }()
		pass := func(d time.Duration) { time.Sleep(d); synctest.Wait() } // of the bubble's clock
		pass(2 * flushInterval)
		if err := os.Remove(p.store.path()); err != nil {
			t.Fatal(err)
		}
		p.told(addresses, []string{"b"}, "a=2")
		pass(restoreAfter / 2)
		p.told(addresses, nil, "c=1")
		connected.Store(false)
		pass(2 * restoreAfter)
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
			t.Errorf("there is %v, %v though the control plane is gone, too", left, err)
		}
		connected.Store(true)
		pass(restoreAfter / 2)
		if exists(p.store.path()) {
			t.Error("it is there again so soon")
		}
		pass(restoreAfter)
		c, err := read(p.store.path(), cfg)
		if want := "policies: ; addresses: a=2@v2 c=1@v1"; err != nil || text(c) != want {
			t.Errorf("%s, %v; want %s", text(c), err, want)
		}
		p.told(addresses, nil, "c=2")
		pass(2 * flushInterval)
		if c, err = read(p.store.path(), cfg); err != nil || !strings.Contains(text(c), "c=2@v2") {
			t.Errorf("%s, %v; what comes later is not saved", text(c), err)
		}
		cancel()
		if err := errors.Join(<-ran, p.store.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestDiskFails has a disk take nothing for a while: what changes then is bounded, told of once, and saved when it can be.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t.TempDir())
		var log bytes.Buffer
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		p := start(t, cfg)
		p.told(addresses, nil, "a=1", "b=1", "c=1")
		p.store.complete = true
		p.store.save()
		good := p.store.file
		bad, err := os.Open(p.store.path()) // what is written to it fails
		if err != nil {
			t.Fatal(err)
		}
		defer bad.Close()
		p.store.file = bad
		p.told(addresses, []string{"b"}, "a=2", "d=1")
		for i := range 100 {
			pod := fmt.Sprintf("pod%d", i)
			p.told(addresses, nil, pod+"=1")
			p.store.save()
			p.told(addresses, []string{pod}, "a=3")
			time.Sleep(retryInterval) // of the bubble's clock
			p.store.save()
		}
		if n := len(p.store.pending); n > 3 {
			t.Errorf("%d changes are kept, of 3 resources", n)
		}
		p.store.file = good
		p.store.save()
		if n := len(p.store.pending); n == 0 {
			t.Error("it was tried again at once")
		}
		time.Sleep(retryInterval)
		p.store.save()
		c, err := read(p.store.path(), cfg)
		if want := "policies: ; addresses: a=3@v3 c=1@v1 d=1@v1"; err != nil || text(c) != want {
			t.Errorf("%s, %v; want %s", text(c), err, want)
		}
		if failed, again := strings.Count(log.String(), "ERROR"), strings.Count(log.String(), "saved again"); failed != 1 || again != 1 {
			t.Errorf("told %d times that it failed and %d times that it works again, want once each:\n%s", failed, again, log.String())
		}
		p.end(true)
	})
}

// TestPlaceFails cannot put the file in place at first: that is tried again, and so is a rewrite.
func TestPlaceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t.TempDir())
		p := start(t, cfg)
		inTheWay := filepath.Join(p.store.path(), "x")
		if err := os.MkdirAll(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		p.told(addresses, nil, "a=1")
		p.store.complete = true
		p.store.save()
		if !p.store.failing || p.store.placed {
			t.Fatal("a folder was replaced")
		}
		if err := os.RemoveAll(p.store.path()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryInterval) // of the bubble's clock
		p.store.save()
		c, err := read(p.store.path(), cfg)
		if want := "policies: ; addresses: a=1@v1"; err != nil || text(c) != want || p.store.failing {
			t.Errorf("%s, %v; want %s", text(c), err, want)
		}
		p.end(true)
	})
}
