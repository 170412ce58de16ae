package app

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// TestListenersByName: what goes by the name of a server has its destination and its names.
func TestListenersByName(t *testing.T) {
	p := &parts{store: config.NewStore(nil)}
	listener := configtest.Named("5s", "rest", "", map[string]string{"a": `a.example, "*.b.example"`, "rest": ""})
	for typeURL, list := range (configtest.Resources{Listener: listener}).All(t) {
		for _, h := range p.store.Handlers() {
			if h.TypeURL == typeURL {
				h.Apply(list, nil)
			}
		}
	}
	var page strings.Builder
	if err := p.dumpListeners(&page); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(page.String()), "")
	for _, want := range []string{
		`{"chain":"inbound-vip|81|tls|stock.shop.svc.cluster.local|a","destinations":["10.96.0.1:81"],"servers":["*.b.example","a.example"],"protocol":"tcp","clusters":["a"]`,
		`{"chain":"inbound-vip|81|tls|stock.shop.svc.cluster.local|rest","destinations":["10.96.0.1:81"],"servers":["*"]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the page has no %s:\n%s", want, page.String())
		}
	}
}
