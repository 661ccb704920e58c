// Goroutines, channels, timers and a garbage collector that never rests, in a static binary.
// /put?KEY=VALUE, /get?KEY, and /state as in server.py.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	data     sync.Map
	ticks    atomic.Int64
	messages atomic.Int64
	garbage  atomic.Int64
)

type tree struct{ left, right *tree }

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{grow(depth - 1), grow(depth - 1)}
}

func (t *tree) count() int {
	if t.left == nil {
		return 1
	}
	return 1 + t.left.count() + t.right.count()
}

func litter() {
	for {
		if grow(12).count() != 8191 {
			panic("a tree lost a leaf")
		}
		garbage.Add(1)
		time.Sleep(time.Millisecond)
	}
}

func relay(in <-chan int, out chan<- int) {
	for number := range in {
		out <- number + 1
	}
}

func ring() {
	first := make(chan int)
	last := first
	for i := 0; i < 100; i++ {
		next := make(chan int)
		go relay(last, next)
		last = next
	}
	for {
		first <- 0
		if <-last != 100 {
			panic("the ring miscounted")
		}
		messages.Add(1)
		time.Sleep(time.Millisecond)
	}
}

func answer(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 2 {
		return
	}
	path, query, _ := strings.Cut(fields[1], "?")
	var body string
	switch path {
	case "/put":
		key, value, _ := strings.Cut(query, "=")
		data.Store(key, value)
		body = "ok"
	case "/get":
		if value, found := data.Load(query); found {
			body = value.(string)
		}
	default:
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		body = fmt.Sprintf(`{"alive":{"ticks":%d,"messages":%d,"garbage":%d,"collections":%d},"fixed":{"pid":%d}}`,
			ticks.Load(), messages.Load(), garbage.Load(), memory.NumGC, os.Getpid())
	}
	fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\n\r\n%s", body)
}

func main() {
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	go litter()
	go litter()
	go ring()
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go answer(conn)
	}
}
