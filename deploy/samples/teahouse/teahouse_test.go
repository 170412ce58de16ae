package teahouse

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/deploy/samples/greeter"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

func TestFront(t *testing.T) {
	menu := httptest.NewServer(MenuHandler(whoami.Who{Pod: "menu-1"}))
	defer menu.Close()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			greeter.Handle(conn, whoami.Who{Pod: "door-1", Node: "node1"})
		}
	}()
	front := &Front{
		Me: whoami.Who{Pod: "front-1"}, MenuURL: menu.URL, DoorAddr: door.Addr().String(),
		Client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	ask := func() (int, Table) {
		recorder := httptest.NewRecorder()
		front.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/", nil))
		var table Table
		if err := json.Unmarshal(recorder.Body.Bytes(), &table); err != nil {
			t.Fatalf("answer %q: %v", recorder.Body, err)
		}
		return recorder.Code, table
	}
	status, table := ask()
	if status != http.StatusOK || table.Menu == nil || table.Menu.By.Pod != "menu-1" || table.Menu.Secret != Secret ||
		!strings.HasSuffix(table.Door, "from door-1 on node1") {
		t.Errorf("status %d, answer %+v", status, table)
	}
	menu.Close()
	door.Close()
	<-done
	if status, table := ask(); status != http.StatusBadGateway || table.MenuError == "" || table.DoorError == "" {
		t.Errorf("with nobody behind it: status %d, answer %+v", status, table)
	}
}
