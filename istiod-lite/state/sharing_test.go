package state

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// sharedEntry is one of many that have a host and an address in common.
func sharedEntry(i int, namespace string, generation int64) *cluster.ServiceEntry {
	return &cluster.ServiceEntry{
		Key: cluster.Key{Namespace: namespace, Name: fmt.Sprint("e", i)}, Created: time.Unix(int64(i), 0), Generation: generation,
		Hosts: []string{"shared.example"}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/32")}, Resolution: cluster.ResolutionStatic,
		Ports:     []cluster.ServicePort{{Name: "p", Port: 80, Target: uint16(80 + generation)}},
		Endpoints: []cluster.EntryEndpoint{{Addr: netip.MustParseAddr("192.0.2.1")}},
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Many ServiceEntries may share a host and an address, each for its own namespace or all in one: what a change of one of them
// costs does not depend on how many they are.
func TestSharedHostsCostNoMore(t *testing.T) {
	for _, c := range []struct {
		name      string
		namespace func(i int) string
	}{
		{"each in its namespace", func(i int) string { return fmt.Sprint("ns", i) }},
		{"in one namespace", func(int) string { return "shop" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			// each is what an entry of n costs when they come, and when one of them changes.
			each := func(n int) (first, change uint64) {
				s := New(mesh)
				first = allocated(func() {
					for i := range n {
						s.Upsert(sharedEntry(i, c.namespace(i), 1))
						if i%10 == 0 {
							s.Flush()
						}
					}
					s.Flush()
				}) / uint64(n)
				s.TakeReport()
				const changes = 50
				change = allocated(func() {
					for i := range changes {
						s.Upsert(sharedEntry(i, c.namespace(i), 2))
						s.Flush()
						if told := len(s.TakeReport().Statuses); told != 1 {
							t.Fatalf("one of %d entries changed, and %d say another thing", n, told)
						}
					}
				}) / changes
				return first, change
			}
			fewFirst, fewChange := each(200)
			manyFirst, manyChange := each(4000)
			t.Logf("bytes for each of 200 and of 4,000: first %d and %d, change %d and %d", fewFirst, manyFirst, fewChange, manyChange)
			if manyFirst > 3*fewFirst || manyChange > 3*fewChange {
				t.Error("the cost of one grows with their number")
			}
		})
	}
}

// When the oldest of a namespace gives a host up, the next one has it, and all others of the namespace say so.
func TestSharedHostPassesOn(t *testing.T) {
	s := New(mesh)
	for i := range 5 {
		s.Upsert(sharedEntry(i, "shop", 1))
	}
	s.Flush()
	s.TakeReport()
	s.Delete(cluster.KindServiceEntry, cluster.Key{Namespace: "shop", Name: "e0"})
	s.Flush()
	reasons := map[string]string{}
	for _, status := range s.TakeReport().Statuses {
		if !status.Gone {
			reasons[status.Key.Name] = status.Want.Reason + " " + status.Want.Message
		}
	}
	if len(reasons) != 4 || strings.Contains(reasons["e1"], "Conflicted") {
		t.Errorf("after the owner went: %v", reasons)
	}
	for _, name := range []string{"e2", "e3", "e4"} {
		if !strings.Contains(reasons[name], "ServiceEntry shop/e1") {
			t.Errorf("%s says %q, want who has the host now", name, reasons[name])
		}
	}
}

// An entry for which there is no address left says so until there is.
func TestShortageIsSaid(t *testing.T) {
	s := New(mesh)
	e := sharedEntry(0, "shop", 1)
	e.Addresses, e.AutoAddress = nil, true
	s.Upsert(e)
	s.Flush()
	s.TakeReport()
	for _, c := range []struct {
		reason    string
		shortages map[cluster.Key][]cluster.Shortage
	}{
		{"NoAddressLeft", map[cluster.Key][]cluster.Shortage{e.Key: {{Host: "shared.example", Range: netip.MustParsePrefix("240.240.0.0/16")}}}},
		{"Accepted", nil},
	} {
		s.SetShortages(c.shortages)
		s.Flush()
		if told := s.TakeReport().Statuses; len(told) != 1 || told[0].Want.Reason != c.reason {
			t.Errorf("told %+v, want reason %s", told, c.reason)
		}
		s.SetShortages(c.shortages)
		s.Flush()
		if told := s.TakeReport().Statuses; len(told) > 0 {
			t.Errorf("nothing has changed, and told %+v", told)
		}
	}
}

// faultyService has a fault that names it.
func faultyService(i, version int) *cluster.Service {
	return &cluster.Service{Key: cluster.Key{Namespace: "shop", Name: fmt.Sprint("s", i)}, IPv4: true, Faults: []string{fmt.Sprint("fault ", version)}}
}

// A change of one object's faults is logged, and costs the same however many objects have faults.
func TestFaultsAreReportedByObject(t *testing.T) {
	change := func(n int) uint64 {
		var log bytes.Buffer
		r := &run{synced: map[cluster.Kind]bool{}, state: New(mesh), Loop: NewLoop(LoopConfig{
			Registerer: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(&log, nil)),
		})}
		step := func(i, version int) {
			r.state.Upsert(faultyService(i, version))
			r.state.Flush()
			r.report()
		}
		for i := range n {
			step(i, 1)
		}
		if lines := strings.Count(log.String(), "fault in object"); lines != n {
			t.Fatalf("%d lines about %d faults", lines, n)
		}
		log.Reset()
		r.report()
		step(0, 1)
		if log.Len() > 0 {
			t.Errorf("nothing has changed, and this is logged:\n%s", &log)
		}
		const changes = 50
		bytes := allocated(func() {
			for i := range changes {
				step(i, 2)
			}
		}) / changes
		if lines := strings.Count(log.String(), "fault 2"); lines != changes {
			t.Errorf("%d lines about %d faults that are new:\n%s", lines, changes, &log)
		}
		r.state.Delete(cluster.KindService, faultyService(0, 2).Key)
		r.state.Flush()
		r.report()
		if faults := len(r.state.Problems()); r.metrics.total != faults || faults != n-1 {
			t.Errorf("%d faults are counted, there are %d of %d", r.metrics.total, faults, n-1)
		}
		return bytes
	}
	few, many := change(100), change(2000)
	t.Logf("bytes for each change: with 100 faults %d, with 2,000 %d", few, many)
	if many > 3*few {
		t.Error("the cost of one grows with their number")
	}
}
