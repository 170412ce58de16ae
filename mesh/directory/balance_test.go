package directory_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// endpoints puts n endpoints p0, p1, ... of shop/web.
func endpoints(t testing.TB, d *directory.Directory, n int) {
	t.Helper()
	for i := range n {
		apply(t, d, pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), serves("web")))
	}
}

func uid(name string) string { return "Kubernetes//Pod/shop/" + name }

// pick picks an endpoint of shop/web, which must be there.
func pick(t testing.TB, d *directory.Directory, exclude ...string) *directory.Workload {
	t.Helper()
	e, err := d.Pick(directory.PickRequest{Service: web(d), Port: 80, Exclude: exclude})
	if err != nil {
		t.Fatal(err)
	}
	return e.Workload
}

// TestLeastLoaded: connections that are held spread much more evenly than chance alone would have it, by weight.
func TestLeastLoaded(t *testing.T) {
	const each = 200
	for _, n := range []int{2, 3, 10, 100} {
		d := newDirectory()
		apply(t, d, service("web"))
		endpoints(t, d, n)
		for range n * each {
			pick(t, d).Hold()
		}
		least, most := math.MaxInt, 0
		for i := range n {
			held := workload(d, fmt.Sprint("p", i)).Held()
			least, most = min(least, held), max(most, held)
		}
		// Two choices keep within a few of each other; by one choice, ten endpoints would differ by about 45.
		if most-least > 8 {
			t.Errorf("%d endpoints: between %d and %d connections, want about %d each", n, least, most, each)
		}
	}
}

func TestLeastLoadedByWeight(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"))
	weights := map[string]uint32{"a": 1, "b": 2, "c": 5, "d": 8}
	for name, w := range weights {
		apply(t, d, pod(name, "10.0.0.1", serves("web"), func(p *workloadpb.Workload) { p.Capacity = wrapperspb.UInt32(w) }))
	}
	const n = 1600
	for range n {
		pick(t, d).Hold()
	}
	for name, w := range weights {
		want := n * int(w) / 16
		if held := workload(d, name).Held(); math.Abs(float64(held-want)) > 0.1*float64(want)+5 {
			t.Errorf("%s of weight %d has %d connections, want about %d", name, w, held, want)
		}
	}
}

// TestLoadSurvivesUpdates: what is held is known of the workload whatever changes of it, and released of either value.
func TestLoadSurvivesUpdates(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"), pod("a", "10.0.0.1", serves("web")), pod("b", "10.0.0.2", serves("web")))
	old := workload(d, "a")
	for range 10 {
		old.Hold()
	}
	apply(t, d, pod("a", "10.0.0.1", serves("web"), place("r", "z", "elsewhere")))
	if now := workload(d, "a"); now == old || now.Held() != 10 {
		t.Fatalf("after an update it holds %d", now.Held())
	}
	// Now and then chance compares the busy one with no other.
	if got := picks(t, d, directory.PickRequest{Service: web(d), Port: 80}, 50); got["a"] > 10 {
		t.Errorf("picked %v, want the idle one", got)
	}
	old.Release()
	if n := workload(d, "a").Held(); n != 9 {
		t.Errorf("after one release it holds %d", n)
	}
}

// TestPickMore tells whether there is another one to try.
func TestPickMore(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web"))
	endpoints(t, d, 3)
	for _, tt := range []struct {
		exclude []string
		more    bool
	}{{nil, true}, {[]string{uid("p0")}, true}, {[]string{uid("p0"), uid("p1")}, false}} {
		e, err := d.Pick(directory.PickRequest{Service: web(d), Port: 80, Exclude: tt.exclude})
		if err != nil || e.More != tt.more {
			t.Errorf("with %d tried: more %v, %v", len(tt.exclude), e.More, err)
		}
	}
}

// TestPickNamedPortOfFew: few of many endpoints have a named port, and they are found as fast as others.
func TestPickNamedPortOfFew(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web", func(s *workloadpb.Service) { s.Ports = []*workloadpb.Port{port(80, 8080), port(81, 0)} }))
	endpoints(t, d, 2000)
	apply(t, d, pod("metrics", "10.9.0.1", serves("web", port(81, 9090))))
	r := directory.PickRequest{Service: web(d), Port: 81}
	if got := names(picks(t, d, r, 50)); got != "metrics" {
		t.Errorf("picked %s", got)
	}
	apply(t, d, pod("p7", "10.0.0.8", serves("web", port(81, 9090))))
	if got := names(picks(t, d, r, 200)); got != "metrics p7" {
		t.Errorf("after another has the port, picked %s", got)
	}
	apply(t, d, service("web", func(s *workloadpb.Service) { s.Ports = []*workloadpb.Port{port(81, 1)} }))
	r.Service = web(d)
	if got := picks(t, d, r, 100); len(got) < 20 {
		t.Errorf("after the service has it for all, picked only %d endpoints", len(got))
	}
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory()
		apply(t, d, service("web"))
		endpoints(t, d, 4)
		key := web(d).ServiceKey
		r := directory.PickRequest{Service: web(d), Port: 80}
		fail := func(name string, n int) (out time.Duration) {
			for range n {
				out = d.Failed(key, uid(name))
			}
			return out
		}
		all := "p0 p1 p2 p3"
		if out := fail("p0", 4); out != 0 || names(picks(t, d, r, 200)) != all {
			t.Fatalf("out for %v after four failures", out)
		}
		d.Succeeded(key, uid("p0"))
		if out := fail("p0", 4); out != 0 {
			t.Fatalf("a success between does not count: out for %v", out)
		}
		time.Sleep(2 * time.Minute)
		if out := fail("p0", 4); out != 0 {
			t.Fatalf("old failures count: out for %v", out)
		}
		if out := fail("p0", 1); out != 10*time.Second {
			t.Fatalf("out for %v after five failures in a row", out)
		}
		if got := names(picks(t, d, r, 200)); got != "p1 p2 p3" || d.Ejected() != 1 {
			t.Fatalf("picked %s, %d ejected", got, d.Ejected())
		}
		// A bounded share: two of four may be out, a third one not.
		fail("p1", 5)
		if out := fail("p2", 50); out != 0 {
			t.Errorf("a third of four is out for %v", out)
		}
		if got := names(picks(t, d, r, 200)); got != "p2 p3" {
			t.Errorf("picked %s", got)
		}
		// What is out is the last resort.
		if w := pick(t, d, uid("p2"), uid("p3")); w.Name != "p0" && w.Name != "p1" {
			t.Errorf("picked %s", w.Name)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		if got := names(picks(t, d, r, 200)); got != all || d.Ejected() != 0 {
			t.Fatalf("after their time picked %s, %d ejected", got, d.Ejected())
		}
		// Back, and failing at once: out for longer.
		if out := fail("p0", 1); out != 20*time.Second {
			t.Errorf("failing at once after its return: out for %v", out)
		}
		time.Sleep(20*time.Second + time.Millisecond)
		pick(t, d)
		d.Succeeded(key, uid("p0"))
		if out := fail("p0", 4); out != 0 {
			t.Errorf("out for %v after four failures, having worked since", out)
		}
		if out := fail("p0", 1); out != 40*time.Second {
			t.Errorf("third time: out for %v", out)
		}
		time.Sleep(40*time.Second + time.Millisecond)
		pick(t, d)
		time.Sleep(40 * time.Second)
		d.Succeeded(key, uid("p0"))
		if out := fail("p0", 5); out != 10*time.Second {
			t.Errorf("after having worked for long: out for %v", out)
		}
	})
}

// TestEjectionBound: how many may be out follows what balancing sends to.
func TestEjectionBound(t *testing.T) {
	d := newDirectory()
	endpoints(t, d, 6) // before their service is known
	apply(t, d, service("web"))
	mayEject := func(want int) {
		t.Helper()
		for i := range 6 {
			for range 5 {
				d.Failed(web(d).ServiceKey, uid(fmt.Sprint("p", i)))
			}
		}
		if got := d.Ejected(); got != want {
			t.Errorf("%d are out, want %d", got, want)
		}
		if err := d.CheckEndpoints(); err != nil {
			t.Error(err)
		}
		for i := range 6 { // another pod of the name is not the one that failed
			apply(t, d, pod(fmt.Sprint("p", i), "10.0.8.1", serves("web")))
			apply(t, d, pod(fmt.Sprint("p", i), fmt.Sprint("10.0.0.", i+1), serves("web")))
		}
	}
	mayEject(3)
	apply(t, d, pod("p4", "10.0.0.5", serves("web"), unhealthy), pod("p5", "10.0.0.6", serves("web"), unhealthy))
	mayEject(2)
	apply(t, d, pod("p4", "10.0.0.5", serves("web"), unhealthy), pod("p5", "10.0.0.6", serves("web"), unhealthy),
		service("web", func(s *workloadpb.Service) {
			s.LoadBalancing = &workloadpb.LoadBalancing{HealthPolicy: workloadpb.LoadBalancing_ALLOW_ALL}
		}))
	mayEject(3)
	remove(t, d, "shop/web")
	apply(t, d, service("web"))
	mayEject(3)
}

// TestEjectionEnds with a new pod of the name, with the health that the control plane tells, and with the endpoint.
func TestEjectionEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(d *directory.Directory)
		want   string
	}{
		{"nothing", func(*directory.Directory) {}, "p1 p2"},
		{"an update of no matter", func(d *directory.Directory) {
			apply(t, d, pod("p0", "10.0.0.1", serves("web"), place("r", "z", "n")))
		}, "p1 p2"},
		{"another pod", func(d *directory.Directory) { apply(t, d, pod("p0", "10.0.9.9", serves("web"))) }, "p0 p1 p2"},
		{"recovery", func(d *directory.Directory) {
			apply(t, d, pod("p0", "10.0.0.1", serves("web"), unhealthy))
			apply(t, d, pod("p0", "10.0.0.1", serves("web")))
		}, "p0 p1 p2"},
		{"removal", func(d *directory.Directory) {
			remove(t, d, uid("p0"))
			apply(t, d, pod("p0", "10.0.0.1", serves("web")))
		}, "p0 p1 p2"},
		{"an update of the service", func(d *directory.Directory) {
			apply(t, d, service("web", func(s *workloadpb.Service) { s.Ports = append(s.Ports, port(443, 443)) }))
		}, "p1 p2"},
	} {
		d := newDirectory()
		apply(t, d, service("web"))
		endpoints(t, d, 3)
		pick(t, d)
		for range 5 {
			d.Failed(web(d).ServiceKey, uid("p0"))
		}
		tt.change(d)
		if got := names(picks(t, d, directory.PickRequest{Service: web(d), Port: 80}, 200)); got != tt.want {
			t.Errorf("%s: picked %s, want %s", tt.name, got, tt.want)
		}
		if n := d.Ejected(); (n == 1) != (tt.want == "p1 p2") {
			t.Errorf("%s: %d ejected", tt.name, n)
		}
	}
}

// TestEjectionOfAllInTheZone: the next zone comes before what is ejected in the own one.
func TestEjectionOfAllInTheZone(t *testing.T) {
	d := newDirectory()
	apply(t, d, pod("client", "10.9.0.1", place("r", "z1", "n")),
		service("web", balanced(workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_ZONE)),
		pod("near", "10.0.0.1", serves("web"), place("r", "z1", "n")),
		pod("far", "10.0.0.2", serves("web"), place("r", "z2", "n")))
	r := directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client")}
	if got := names(picks(t, d, r, 50)); got != "near" {
		t.Fatalf("picked %s", got)
	}
	for range 5 {
		d.Failed(web(d).ServiceKey, uid("near"))
	}
	if got := names(picks(t, d, r, 50)); got != "far" {
		t.Errorf("picked %s", got)
	}
	d.Failed(directory.ServiceKey{Namespace: "shop", Hostname: "nowhere"}, uid("near")) // of no service
	apply(t, d, pod("far", "10.0.0.2", serves("web"), place("r", "z2", "n"), unhealthy))
	if got := names(picks(t, d, r, 50)); got != "near" {
		t.Errorf("with nothing else left picked %s", got)
	}
}

// TestDumpOfBalancing shows what this proxy thinks of endpoints.
func TestDumpOfBalancing(t *testing.T) {
	d := newDirectory()
	apply(t, d, service("web", sticky(time.Minute)))
	endpoints(t, d, 2)
	for range 5 {
		d.Failed(web(d).ServiceKey, uid("p0"))
	}
	workload(d, "p1").Hold()
	got := d.Dump().Services[0]
	if e := got.Endpoints[uid("p0")]; !e.Ejected || e.Connections != 0 {
		t.Errorf("endpoint that failed: %+v", e)
	}
	if e := got.Endpoints[uid("p1")]; e.Ejected || e.Connections != 1 {
		t.Errorf("endpoint with a connection: %+v", e)
	}
	if got.SessionAffinity != "1m0s" {
		t.Errorf("session affinity %q", got.SessionAffinity)
	}
}
