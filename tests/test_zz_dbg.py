import sys; sys.path.insert(0,"/work/main/tests")
import asyncio, time
from collections import Counter
import test_leaks as t
from test_leaks import running
from conftest import cluster, deploy
def test_dbg(running):
    app=running.client.handle.app_name
    for kind in ("by value","keep_value","taken whole"):
        async def make(_): await running.client.acall({"do":kind})
        asyncio.run(t.make_some(make,40))
        for r in range(4):
            b=t.snapshot(app)
            t0=time.time(); asyncio.run(t.make_some(make,200)); t1=time.time()
            for w in (0,0.5,1,2):
                time.sleep(w); ts=time.time()
                a=t.snapshot(app)
                print(kind,r,f"{t1-t0:.1f}s +{time.time()-t1:.1f} snap {time.time()-ts:.2f}", "obj",a.objects-b.objects, a.objects, {n[-12:]:(c.references-b.processes[n].references,c.blocks-b.processes[n].blocks,(c.rss_bytes-b.processes[n].rss_bytes)>>20) for n,c in a.processes.items()})
