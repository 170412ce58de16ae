package app

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// A ServiceEntry without addresses gets some, which are the same to the clients of both replicas, and says what became of it.
func TestServiceEntryGetsAddresses(t *testing.T) {
	a := newAPI(t, namespaceObject(api.DefaultNamespace), namespaceObject("shop"))
	a.createPod(a.ztunnel("node1"))
	first, second := a.start(), a.start()
	first.awaitReady()
	second.awaitReady()
	a.awaitWatch(2, "serviceentries", "workloadentries")
	root, token := files(t, a, "ztunnel-node1")

	entries := a.dynamic.Resource(serviceEntryGVR).Namespace("shop")
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"name": "api", "namespace": "shop", "generation": int64(1)},
		"spec": map[string]any{"hosts": []any{"api.example.com"}, "resolution": "DNS",
			"ports": []any{map[string]any{"number": int64(443), "name": "tls", "protocol": "TLS"}}},
	}}
	if _, err := entries.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	key := directory.ServiceKey{Namespace: "shop", Hostname: "api.example.com"}
	var told [][]directory.NetworkAddr
	for _, r := range []*replica{first, second} {
		dir := follow(t, r, root, token)
		await(t, "two addresses of the host", func() bool {
			s := dir.Service(key)
			return s != nil && len(s.Addrs) == 2
		})
		told = append(told, dir.Service(key).Addrs)
		if w := dir.Workload("Kubernetes/networking.istio.io/ServiceEntry/shop/api/api.example.com"); w == nil || w.Hostname != "api.example.com" {
			t.Errorf("the endpoint to look up is %+v", w)
		}
	}
	if !slices.Equal(told[0], told[1]) {
		t.Errorf("one replica says %v, the other %v", told[0], told[1])
	}
	if !netip.MustParsePrefix("240.240.0.0/16").Contains(told[0][0].Addr) || !netip.MustParsePrefix("2001:2::/48").Contains(told[0][1].Addr) {
		t.Errorf("addresses are %v", told[0])
	}
	await(t, "the addresses in the entry's status", func() bool {
		o, err := entries.Get(t.Context(), "api", metav1.GetOptions{})
		return err == nil && len(cluster.ServiceEntryOf(o).Assigned) == 2
	})
}

// An entry for which there is no address left says so, and gets some when there are.
func TestServiceEntryWithoutAddressesSaysSo(t *testing.T) {
	a := newAPI(t, namespaceObject(api.DefaultNamespace), namespaceObject("shop"))
	r := a.start()
	r.awaitReady()
	a.awaitWatch(1, "serviceentries")
	entries := a.dynamic.Resource(serviceEntryGVR).Namespace("shop")
	create := func(name string, spec map[string]any) {
		t.Helper()
		spec["ports"] = []any{map[string]any{"number": int64(443), "name": "tls", "protocol": "TLS"}}
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
			"metadata": map[string]any{"name": name, "namespace": "shop", "generation": int64(1)}, "spec": spec,
		}}
		if _, err := entries.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	short := func() bool {
		_, text := r.get(r.debug, "/debug/problemz")
		return strings.Contains(text, "host api.example.com: no virtual address is left in 240.240.0.0/16")
	}
	create("all", map[string]any{"hosts": []any{"all.example"}, "resolution": "NONE", "addresses": []any{"240.240.0.0/16", "2001:2::/48"}})
	create("api", map[string]any{"hosts": []any{"api.example.com"}, "resolution": "DNS"})
	await(t, "a fault of the entry", short)
	if err := entries.Delete(t.Context(), "all", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "addresses of the entry", func() bool {
		o, err := entries.Get(t.Context(), "api", metav1.GetOptions{})
		return err == nil && len(cluster.ServiceEntryOf(o).Assigned) == 2 && !short()
	})
}

// follow runs a node proxy's libraries against a replica until the test ends.
func follow(t *testing.T, r *replica, root, token string) *directory.Directory {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := directory.New(directory.Config{Node: "node1", Logger: log})
	client, err := xds.NewClient(xds.Config{
		Connect: func() (xds.Conn, error) {
			return identity.NewChannel(identity.ChannelConfig{Address: "https://" + r.secure, RootCA: root, ServerName: "istiod.istio-system.svc", TokenFile: token})
		}, Node: proxyNode("node1"), Logger: log,
		Handlers: []xds.Handler{
			{TypeURL: xds.TypeAuthorization, Apply: dir.HandleAuthorizations}, {TypeURL: xds.TypeAddress, Apply: dir.HandleAddresses},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Run(ctx); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return dir
}
