package proxy

import (
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// FuzzForwarded reads any header as a peer may send it: what is taken for a host is a part of it, without quotes.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{"", `for="[fd00::1]:1234";host=web.ns.svc.cluster.local`, `host="a b" ; for=x`, ";;host=;host=b", `host="`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		host := forwardedHost(header)
		if !strings.Contains(header, host) || strings.HasPrefix(host, `"`) || strings.HasSuffix(host, `"`) || strings.Contains(host, ";") {
			t.Errorf("host %q of %q", host, header)
		}
	})
}

// FuzzBaggage describes a workload whose names are anything: the header is valid and says just that.
func FuzzBaggage(f *testing.F) {
	f.Add("Kubernetes", "ns", "web", "v1")
	f.Add("", "a,b;c%\x01ü", "k8s.cluster.name=x", "\"\\\r\n")
	f.Fuzz(func(t *testing.T, cluster, namespace, name, revision string) {
		w := &directory.Workload{ClusterID: cluster, Namespace: namespace, CanonicalName: name, CanonicalRevision: revision}
		header := baggageOf(w)
		if !httpguts.ValidHeaderFieldValue(header) {
			t.Fatalf("%q is no header value", header)
		}
		got := map[string]string{}
		for member := range strings.SplitSeq(header, ",") {
			key, value, _ := strings.Cut(member, "=")
			plain, err := url.PathUnescape(value)
			if err != nil {
				t.Fatalf("member %q: %v", member, err)
			}
			if _, twice := got[key]; twice {
				t.Fatalf("%q is there twice in %q", key, header)
			}
			got[key] = plain
		}
		for key, want := range map[string]string{
			"k8s.cluster.name": cluster, "k8s.namespace.name": namespace, "service.name": name, "service.version": revision,
		} {
			if got[key] != want {
				t.Errorf("%s is %q, want %q", key, got[key], want)
			}
		}
	})
}
