package agent

import (
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// TestNames: name queries are redirected where the proxy takes them and the pod does not object, and no longer once it does
// not; pods are captured all the same.
func TestNames(t *testing.T) {
	w := newWorld(t)
	w.timing.Verify = time.Hour
	w.timing.Hold = 200 * time.Millisecond // what looks before the proxy serves the pod looks again, as it does every 20 s
	w.dns = true
	w.depot = handover.NewDepot(handover.DepotConfig{Pods: allServed{}, Logger: slog.New(slog.DiscardHandler)})
	defer w.depot.Close()
	w.start().ready(t)
	first := w.connect()
	w.namespace("shop", "ambient")
	s := w.running("web", "10.0.0.7")
	objects := w.running("plain", "10.0.0.8", annotation(api.AnnotationDNSCapture, "false"))
	names := func(s *sandbox) (is bool) { w.with(func() { is = s.hooked && s.names }); return is }
	eventually(t, "captured with name queries", func() bool { return w.isCaptured("web") && names(s) })
	eventually(t, "captured without", func() bool { return w.isCaptured("plain") })
	if names(objects) {
		t.Error("name queries of a pod that objects are redirected")
	}
	// The last of three steps of which the state above shows the first.
	eventually(t, "queries in flight past the proxy are forgotten", func() bool { return w.countStep("web", "names-in") > 0 })

	// A proxy that does not take them, such as an older one, though sockets of the one before are kept.
	keep(t, w.depot, s.file)
	w.with(func() { w.dns = false })
	w.connect()
	first.Close()
	eventually(t, "name queries go past the proxy", func() bool { return w.isCaptured("web") && !names(s) })
	eventually(t, "queries in flight to the proxy are forgotten", func() bool { return w.countStep("web", "names-out") > 0 })

	// And one that does.
	w.with(func() { w.dns = true })
	w.connect()
	eventually(t, "name queries go to the proxy again", func() bool { return w.isCaptured("web") && names(s) })
}

// allServed are pods that a proxy serves.
type allServed struct{}

func (allServed) Known(handover.NetNS) bool  { return true }
func (allServed) Served(handover.NetNS) bool { return true }

// keep has a depot keep something of the network namespace of a file, of a proxy that is gone.
func keep(t *testing.T, d *handover.Depot, file string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Deposit(nil, handover.NetNS{Dev: st.Dev, Ino: st.Ino}, []handover.Socket{{FD: fd}}); err != nil {
		t.Fatal(err)
	}
}

// TestNamesWhileNoProxyRuns: a proxy that is away for a moment changes nothing.
func TestNamesWhileNoProxyRuns(t *testing.T) {
	w := newWorld(t)
	w.dns = true
	w.start().ready(t)
	p := w.connect()
	w.namespace("shop", "ambient")
	s := w.running("web", "10.0.0.7")
	names := func() (is bool) { w.with(func() { is = s.hooked && s.names }); return is }
	eventually(t, "captured with name queries", func() bool { return w.isCaptured("web") && names() })
	p.Close()
	never(t, "they are given up though the proxy's successor will take them", func() bool { return !names() })
}

// TestNamesOfLateProxy: a proxy that has come takes name queries of a pod only after it was looked for the first time, or when a job on
// the pod has looked already that runs still. It need not be long until that is noticed, though pods are held seldom.
func TestNamesOfLateProxy(t *testing.T) {
	for _, tt := range []struct {
		name string
		come func(t *testing.T, w *world, tell func())
	}{
		{"it serves the pod late", func(t *testing.T, w *world, tell func()) {
			w.running("web", "10.0.0.7")
			eventually(t, "captured", func() bool { return w.isCaptured("web") })
			before := w.countStep("web", "hold")
			tell()
			eventually(t, "it was looked for", func() bool { return w.countStep("web", "hold") > before })
		}},
		{"a job runs", func(t *testing.T, w *world, tell func()) {
			reached, goOn := make(chan struct{}, 1), make(chan struct{})
			defer close(goOn)
			w.with(func() {
				w.halt = func(step, uid string) {
					if uid == "web" && step == "annotate="+api.RedirectionEnabled {
						reached <- struct{}{}
						<-goOn
					}
				}
			})
			w.running("web", "10.0.0.7")
			eventually(t, "a job runs", func() bool { return len(reached) > 0 })
			tell()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.timing.Verify = time.Hour // and so is Hold
			a := w.start().ready(t)
			w.connect()
			w.namespace("shop", "ambient")
			tt.come(t, w, func() {
				a.ProxyEvent(zds.Event{Connected: 1})
				for range 2 { // the loop has taken that when it has gone round
					last := a.beat.Load()
					eventually(t, "the loop goes round", func() bool { return a.beat.Load() != last })
				}
			})
			w.with(func() { w.dns = true })
			eventually(t, "name queries go to the proxy", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.pods["web"].hooked && w.pods["web"].names
			})
		})
	}
}
