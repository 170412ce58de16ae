package proxy

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

func TestBaggage(t *testing.T) {
	for _, tc := range []struct {
		name string
		w    directory.Workload
		want string
	}{
		{"all", directory.Workload{ClusterID: "Kubernetes", Namespace: "ns", Kind: directory.KindDeployment, WorkloadName: "web",
			CanonicalName: "web", CanonicalRevision: "v1", Locality: directory.Locality{Region: "r", Zone: "z"}},
			"k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z"},
		{"little", directory.Workload{Namespace: "ns", Kind: directory.KindJob, WorkloadName: "once"},
			"k8s.namespace.name=ns,k8s.job.name=once"},
		{"unusual", directory.Workload{CanonicalName: "a,b;c%\x01ü"}, "service.name=a%2Cb%3Bc%25%01%C3%BC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := baggageOf(&tc.w); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestForwarded(t *testing.T) {
	client := netip.MustParseAddrPort("[fd00::1]:1234")
	s := &directory.Service{ServiceKey: directory.ServiceKey{Hostname: "web.ns.svc.cluster.local"}}
	with, without := forwardedFor(client, s), forwardedFor(client, nil)
	if with != `for="[fd00::1]:1234";host=web.ns.svc.cluster.local` || without != `for="[fd00::1]:1234"` {
		t.Errorf("got %s and %s", with, without)
	}
	for header, want := range map[string]string{
		with: "web.ns.svc.cluster.local", without: "", "": "", `host="a b" ; for=x`: "a b", ";;;": "",
	} {
		if got := forwardedHost(header); got != want {
			t.Errorf("host of %q is %q, want %q", header, got, want)
		}
	}
}

func TestTraceparent(t *testing.T) {
	form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`)
	trace := newTrace()
	a, b := traceparent(trace), traceparent(trace)
	if !form.MatchString(a) || !form.MatchString(b) || a == b || trace == newTrace() || traceOf(a) != trace || traceOf(b) != trace {
		t.Errorf("trace %x: %s and %s", trace, a, b)
	}
	for _, header := range []string{
		"", "00-", a[:54], a + "0", "01" + a[2:], strings.ReplaceAll(a, "-", "0"), "00-" + strings.Repeat("x", 32) + a[35:], "00-" + strings.Repeat("a", 52),
	} {
		if got := traceOf(header); got != [16]byte{} {
			t.Errorf("trace of %q is %x", header, got)
		}
	}
}
